//go:build unix

package main

import "syscall"

// What stops a process and lets it go on.
const (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
)
