//go:build unix

package main

import "syscall"

// childAttr leaves the terminal's Ctrl-C to this process. A child ends by itself when its input does.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
