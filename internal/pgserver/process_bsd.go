//go:build darwin || freebsd || netbsd || openbsd

package pgserver

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

// setDeathSignal does nothing: only Linux can tie a child to its parent.
func setDeathSignal(*syscall.SysProcAttr) {}

// runsIn says whether pid may be a postmaster on a data directory: whether the process exists and is ours. PostgreSQL
// itself asks no more.
func runsIn(pid int, _ string) bool { return syscall.Kill(pid, 0) == nil }

// processes returns the process table.
func processes() ([]processInfo, error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=,stat=").Output()
	if err != nil {
		return nil, fmt.Errorf("ps: %w", err)
	}
	var all []processInfo
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var p processInfo
		var state string
		if _, err := fmt.Sscan(lines.Text(), &p.pid, &p.parent, &state); err == nil {
			p.zombie = strings.HasPrefix(state, "Z")
			all = append(all, p)
		}
	}
	return all, nil
}
