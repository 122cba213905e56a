package bench

import "syscall"

// childAttr makes a server end with this process, and leaves the terminal's Ctrl-C to this process.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
}
