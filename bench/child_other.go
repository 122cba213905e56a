//go:build !unix

package main

import "syscall"

// childAttr changes nothing.
func childAttr() *syscall.SysProcAttr { return nil }
