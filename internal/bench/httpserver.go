package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// Subcommands of the program that serve what is measured over HTTP. Config.Command runs them.
const (
	ServerCommand = "server"
	FloorCommand  = "bench-floor"
)

// httpPoolSize is how many connections to the database the servers have: as many as "fastpubsub server" by default.
const httpPoolSize = 15

const (
	startTimeout = time.Minute
	stopTimeout  = 20 * time.Second
)

// A child is a server in a process of its own.
type child struct {
	cmd     *exec.Cmd
	address string
	output  bytes.Buffer
	ended   chan struct{}
}

// startChild starts a subcommand and waits until it answers path with 200. The phase's end stops it.
func (e *env) startChild(ctx context.Context, command, path string) (*child, error) {
	if e.config.Command == nil {
		return nil, errors.New("there is no program to run a server with")
	}
	port, err := pgserver.FreePort()
	if err != nil {
		return nil, err
	}
	database, err := url.Parse(e.pool.Config().ConnString())
	if err != nil || database.Scheme == "" {
		return nil, errors.New("workloads over HTTP need a database URL") // the error would quote it
	}
	query := database.Query()
	query.Set("application_name", e.schema)
	query.Set("default_query_exec_mode", e.config.QueryMode)
	if e.config.SynchronousCommit != "" {
		query.Set("synchronous_commit", e.config.SynchronousCommit)
	}
	database.RawQuery = query.Encode()

	c := &child{
		cmd: e.config.Command(command), ended: make(chan struct{}),
		address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
	}
	if c.cmd.Env == nil {
		c.cmd.Env = os.Environ()
	}
	c.cmd.Env = append(c.cmd.Env,
		"FASTPUBSUB_DATABASE_URL="+database.String(), "FASTPUBSUB_DATABASE_SCHEMA="+e.schema,
		"FASTPUBSUB_DATABASE_POOL_SIZE="+strconv.Itoa(httpPoolSize), "FASTPUBSUB_DATABASE_MAX_OVERFLOW=0",
		"FASTPUBSUB_API_HOST=127.0.0.1", "FASTPUBSUB_API_PORT="+strconv.Itoa(port), "FASTPUBSUB_LOG_LEVEL=warning",
	)
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	c.cmd.SysProcAttr = childAttr()
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait() // the state says it, too
		close(c.ended)
	}()
	e.closers = append(e.closers, c.stop)
	return c, c.waitFor(ctx, path)
}

func (c *child) waitFor(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		client, err := dialHTTP(ctx, c.address)
		if err == nil {
			_, err = client.do(http.StatusOK, http.MethodGet, path)
			client.close()
		}
		if err == nil {
			return nil
		}
		select {
		case <-c.ended:
			return fmt.Errorf("the server ended: %s", &c.output)
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// stop ends the server as a person would.
func (c *child) stop() error {
	select {
	case <-c.ended:
		if !c.cmd.ProcessState.Success() {
			return fmt.Errorf("the server ended: %v: %s", c.cmd.ProcessState, &c.output)
		}
		return nil
	default:
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.ended:
		return nil
	case <-time.After(stopTimeout):
		_ = c.cmd.Process.Kill()
		<-c.ended
		return fmt.Errorf("the server did not end within %v of SIGTERM", stopTimeout)
	}
}

// cpu returns what the server has used; 0 where that cannot be found out.
func (c *child) cpu() time.Duration {
	stat, err := readStat(c.cmd.Process.Pid)
	if err != nil {
		return 0
	}
	return time.Duration(stat.own) * time.Second / ticksPerSecond
}

// resident returns the memory that the server has; 0 where that cannot be found out.
func (c *child) resident() int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) < 2 || fields[1] != "kB" {
		return 0
	}
	kilobytes, _ := strconv.ParseInt(fields[0], 10, 64)
	return kilobytes << 10
}

// withCPU adds what the server used for each message to what a run has measured.
func (c *child) withCPU(run func() (tally, error)) (tally, error) {
	before := c.cpu()
	t, err := run()
	if used := c.cpu() - before; err == nil && used > 0 {
		t.metrics = append(t.metrics, Metric{"HTTP server CPU a message", seconds, divide(used.Seconds(), float64(t.messages))})
	}
	return t, err
}
