package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// usage is what the server and this process have used so far. Of the server it is everything: other databases and
// background processes too.
type usage struct {
	wal       int64         // bytes
	fpi       int64         // full-page images in the WAL
	serverCPU time.Duration // if known
	clientCPU time.Duration // if known
}

const readWAL = `
SELECT (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint, (SELECT wal_fpi FROM pg_catalog.pg_stat_wal)`

// readUsage reads all of it in an order that leaves its own work out of the difference of two readings.
func (b *bench) readUsage(ctx context.Context, before bool) (usage, error) {
	var u usage
	wal := func() error { return b.control.QueryRow(ctx, readWAL).Scan(&u.wal, &u.fpi) }
	cpu := func() { u.serverCPU, u.clientCPU = b.postmaster.cpu(), clientCPU() }
	if before {
		err := wal()
		cpu()
		return u, err
	}
	cpu()
	return u, wal()
}

// metrics returns what was used between two readings, for each message.
func (b *bench) usageMetrics(before, after usage, messages int64) []Metric {
	n := float64(messages)
	all := []Metric{
		{"WAL a message", bytesUnit, divide(float64(after.wal-before.wal), n)},
		{"full-page images a message", count, divide(float64(after.fpi-before.fpi), n)},
	}
	if b.postmaster != 0 {
		all = append(all, Metric{"server CPU a message", seconds, divide((after.serverCPU - before.serverCPU).Seconds(), n)})
	}
	if after.clientCPU > 0 {
		all = append(all, Metric{"client CPU a message", seconds, divide((after.clientCPU - before.clientCPU).Seconds(), n)})
	}
	return all
}

// postmaster is the process id of the server, 0 where it does not run on this machine or cannot be looked at.
type postmaster int

// findPostmaster looks for the process that serves conn. That the number exists here proves nothing, since the server may
// be in a container or elsewhere: the process's title must name our end of the connection too.
func findPostmaster(ctx context.Context, conn *pgx.Conn) (postmaster, error) {
	var pid int
	var port *int
	const q = `SELECT pg_catalog.pg_backend_pid(), pg_catalog.inet_client_port()`
	if err := conn.QueryRow(ctx, q).Scan(&pid, &port); err != nil {
		return 0, err
	}
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return 0, nil
	}
	end := "[local]"
	if port != nil {
		end = "(" + strconv.Itoa(*port) + ")"
	}
	if !strings.HasPrefix(string(title), "postgres:") || !strings.Contains(string(title), end) {
		return 0, nil
	}
	stat, err := readStat(pid)
	if err != nil {
		return 0, nil
	}
	return postmaster(stat.parent), nil
}

const ticksPerSecond = 100 // USER_HZ, the same on every Linux that Go runs on

// cpu returns what the server's processes have used, with those that have ended.
func (p postmaster) cpu() time.Duration {
	if p == 0 {
		return 0
	}
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0
	}
	var ticks int64
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		stat, err := readStat(pid)
		switch {
		case err != nil: // it has ended
		case pid == int(p):
			ticks += stat.own + stat.children
		case stat.parent == int(p):
			ticks += stat.own
		}
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond
}

type procStat struct {
	parent        int
	own, children int64 // ticks; children are those that have ended
}

func readStat(pid int) (procStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	// 123 (name, which may hold anything) S 1 ...; the field numbers are those of proc(5) less 3
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 15 {
		return procStat{}, errors.New("short stat")
	}
	field := func(i int) int64 {
		n, _ := strconv.ParseInt(string(fields[i]), 10, 64)
		return n
	}
	return procStat{
		parent:   int(field(1)),
		own:      field(11) + field(12),
		children: field(13) + field(14),
	}, nil
}

// checkpoint makes full-page images start anew for each phase, where it is allowed to.
func (b *bench) checkpoint(ctx context.Context) error {
	_, err := b.control.Exec(ctx, "CHECKPOINT")
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "42501" { // insufficient_privilege
		b.report.note("no right to CHECKPOINT before each phase: WAL figures depend on when the server does")
		return nil
	}
	return err
}
