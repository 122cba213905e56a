package pgserver

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// setDeathSignal makes the kernel end the child when we die: SIGQUIT is PostgreSQL's immediate shutdown, which takes
// the postmaster's children with it. SIGKILL would leave them.
func setDeathSignal(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }

// runsIn says whether pid is a postmaster on the data directory dir: it makes that its working directory. A process
// that merely got the same number after a restart does not.
func runsIn(pid int, dir string) bool {
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	info, err := os.Stat(dir)
	return err == nil && os.SameFile(cwd, info)
}

// processes returns the process table.
func processes() ([]processInfo, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var all []processInfo
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// 123 (name, which may hold anything) S 1 ...
		i := bytes.LastIndexByte(text, ')')
		fields := bytes.Fields(text[i+1:])
		if len(fields) < 2 {
			continue
		}
		pid, err1 := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, err2 := strconv.Atoi(string(fields[1]))
		if err1 == nil && err2 == nil {
			all = append(all, processInfo{pid: pid, parent: parent, zombie: fields[0][0] == 'Z'})
		}
	}
	return all, nil
}
