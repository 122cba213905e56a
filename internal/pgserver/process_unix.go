//go:build linux || darwin || freebsd || netbsd || openbsd

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// userEnv names the account that root runs the server as.
const userEnv = "FASTPUBSUB_POSTGRES_USER"

// account is whom the server runs as, where that is not ourselves.
type account struct {
	name     string
	uid, gid int
}

func supported() error { return nil }

// serverAccount returns nil unless we are root.
func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	names := []string{"postgres", "nobody"}
	if name := os.Getenv(userEnv); name != "" {
		names = []string{name}
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err1 == nil && err2 == nil && uid != 0 {
			return &account{name: name, uid: uid, gid: gid}, nil
		}
	}
	return nil, fmt.Errorf("PostgreSQL does not run as root, and there is no account %s to run it: set %s to one",
		strings.Join(names, " or "), userEnv)
}

func (a *account) sysProcAttr() *syscall.SysProcAttr {
	// In a process group of its own the child does not get the terminal's Ctrl-C; we stop it in order.
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	setDeathSignal(attr)
	return attr
}

// canRun says whether the account can run program in dir, and if not, which directory keeps it out.
func (a *account) canRun(ctx context.Context, program, dir string) error {
	if a == nil {
		return nil
	}
	p, err := a.spawn(exec.CommandContext(ctx, program, "--version"), dir)
	if err == nil {
		<-p.done
		err = p.err
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrPermission) {
		for _, path := range []string{filepath.Dir(program), dir} {
			if closed := a.closedOn(path); closed != "" {
				return fmt.Errorf("running as root, so PostgreSQL runs as %s, who may not enter %s on the way to %s: "+
					"choose another folder (TMPDIR for temporary ones) or account (%s)", a.name, closed, path, userEnv)
			}
		}
	}
	return fmt.Errorf("run %s as %s: %w", program, a.name, err)
}

// closedOn returns the first directory on path, from the root, that the account may not enter by its permission bits.
func (a *account) closedOn(path string) string {
	if parent := filepath.Dir(path); parent != path {
		if closed := a.closedOn(parent); closed != "" {
			return closed
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	bit := fs.FileMode(0o001)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		switch {
		case int(st.Uid) == a.uid:
			bit = 0o100
		case int(st.Gid) == a.gid:
			bit = 0o010
		}
	}
	if info.Mode()&bit != 0 {
		return ""
	}
	return path
}

// ownedByUs says whether the file belongs to the user we run as.
func ownedByUs(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// lockFile takes the exclusive lock of f, which ends when f is closed. It returns false if somebody has it; with wait
// it waits instead.
func lockFile(f *os.File, wait bool) (bool, error) {
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	for {
		switch err := syscall.Flock(int(f.Fd()), how); {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// processInfo is one line of the process table.
type processInfo struct {
	pid, parent int
	zombie      bool
}

const sigStop = syscall.SIGSTOP

func killPID(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }
