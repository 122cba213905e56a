package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A Companion is a program beside a server that refuses to run as root as well, such as a pooler.
type Companion struct {
	process *process
	folder  *folder
	output  bytes.Buffer // written by the process; read it after its done
}

// StartCompanion starts a program as a server is started: root as another account, and on Linux it does not outlive us.
// Its working directory is a temporary folder with these files, name to content, which only that account may read. Ctx
// covers the start only.
func StartCompanion(ctx context.Context, program string, args []string, files map[string]string) (*Companion, error) {
	if err := supported(); err != nil {
		return nil, err
	}
	a, err := serverAccount()
	if err != nil {
		return nil, err
	}
	sweepTemporary()
	f, err := makeTemporary(a)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	c := &Companion{folder: f}
	if err := c.start(ctx, a, program, args, files); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", program, err), f.release())
	}
	return c, nil
}

func (c *Companion) start(ctx context.Context, a *account, program string, args []string, files map[string]string) error {
	if err := a.canRun(ctx, program, c.folder.path); err != nil {
		return err
	}
	for name, content := range files {
		path := filepath.Join(c.folder.path, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
		if a != nil {
			if err := os.Lchown(path, a.uid, a.gid); err != nil {
				return err
			}
		}
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &c.output, &c.output
	var err error
	c.process, err = a.spawn(cmd, c.folder.path)
	return err
}

// Done returns a channel that is closed when the program has ended, for whatever reason.
func (c *Companion) Done() <-chan struct{} { return c.process.done }

// Stop ends the program with SIGTERM, or SIGKILL if that takes longer than 10 seconds, waits for it, and deletes its
// folder. It returns all that the program has printed. Call it once.
func (c *Companion) Stop() (output string, err error) {
	c.process.signal(syscall.SIGTERM)
	select {
	case <-c.process.done:
	case <-time.After(killTimeout):
		c.process.signal(syscall.SIGKILL)
		<-c.process.done
	}
	return c.output.String(), c.folder.release()
}
