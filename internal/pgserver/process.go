package pgserver

import (
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
)

// process is a child of ours.
type process struct {
	cmd    *exec.Cmd
	ending atomic.Bool   // we sent it a signal
	done   chan struct{} // closed when it has ended
	err    error         // how it ended; read it after done
}

// spawn starts cmd in dir as the account a; nil is our own.
//
// The thread that starts a child must live as long as the child: on Linux the child gets its death signal when that
// thread ends, not when the process does.
func (a *account) spawn(cmd *exec.Cmd, dir string) (*process, error) {
	cmd.Dir = dir
	cmd.Env = childEnv()
	cmd.SysProcAttr = a.sysProcAttr()
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) signal(sig os.Signal) {
	select {
	case <-p.done: // by itself, if nobody signalled before
	default:
		p.ending.Store(true)
		_ = p.cmd.Process.Signal(sig) // the one error is that it has just ended
	}
}
