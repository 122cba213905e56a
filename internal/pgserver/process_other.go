//go:build !(linux || darwin || freebsd || netbsd || openbsd)

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"
)

// supported is checked first, so that nothing else here is ever reached.
func supported() error {
	return fmt.Errorf("running a PostgreSQL server on %s is not supported: use an existing database: %w",
		runtime.GOOS, errors.ErrUnsupported)
}

const sigStop = syscall.SIGTERM

type account struct{ uid, gid int }

type processInfo struct {
	pid, parent int
	zombie      bool
}

func serverAccount() (*account, error)                          { return nil, supported() }
func (a *account) canRun(context.Context, string, string) error { return supported() }
func (a *account) sysProcAttr() *syscall.SysProcAttr            { return nil }
func ownedByUs(fs.FileInfo) bool                                { return false }
func lockFile(*os.File, bool) (bool, error)                     { return false, supported() }
func runsIn(int, string) bool                                   { return false }
func processes() ([]processInfo, error)                         { return nil, supported() }
func killPID(int) error                                         { return supported() }
