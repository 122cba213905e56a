//go:build !unix

package main

import "syscall"

// There is nothing that stops a process here, nor a server to soak: see package pgserver.
const (
	sigStop = syscall.Signal(0)
	sigCont = syscall.Signal(0)
)
