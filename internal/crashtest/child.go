package crashtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A Child is this program in a process of its own. It finds in the environment what it should be, and begins with
// [ExitWithParent].
type Child struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	ended  chan struct{}
}

// StartChild starts a child of a test that runs TestCrashChild alone, with what environ adds to the environment. Without that
// TestCrashChild is no test. The child is killed when the test ends.
func StartChild(t testing.TB, environ ...string) *Child {
	t.Helper()
	c, err := Start([]string{"-test.run=^TestCrashChild$"}, environ...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Kill() })
	return c
}

// Start starts a child with these arguments, and with what environ adds to the environment. Kill ends it.
func Start(args []string, environ ...string) (*Child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &Child{cmd: exec.Command(self, args...), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), environ...)
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	if _, err := c.cmd.StdinPipe(); err != nil { // for ExitWithParent
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait() // the state says it, too
		close(c.ended)
	}()
	return c, nil
}

// ExitWithParent makes this process, a child, end when the one that started it is gone.
func ExitWithParent() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
}

// Ended is closed once the child has ended.
func (c *Child) Ended() <-chan struct{} { return c.ended }

// Outcome waits until the child has ended, and returns how it did and what it wrote.
func (c *Child) Outcome() (state *os.ProcessState, output string) {
	<-c.ended
	return c.cmd.ProcessState, c.output.String()
}

// Signal sends a signal to the child.
func (c *Child) Signal(s os.Signal) error { return c.cmd.Process.Signal(s) }

// Kill ends the child with SIGKILL. It returns an error, with its outcome, if it had ended before.
func (c *Child) Kill() error {
	err := c.cmd.Process.Kill()
	state, output := c.Outcome()
	if err != nil {
		return fmt.Errorf("%w; %v: %s", err, state, output)
	}
	return nil
}

// WaitForBackends waits until the database server has seen that clients with these application names are gone: what they
// asked for may go on till then.
func WaitForBackends(t testing.TB, db *storetest.DB, names ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := BackendsGone(ctx, db.Pool, names...); err != nil {
		t.Fatal(err)
	}
}

// BackendsGone is WaitForBackends outside of a test.
func BackendsGone(ctx context.Context, pool *pgxpool.Pool, names ...string) error {
	for n := 1; n > 0; {
		err := pool.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY ($1)`, names).Scan(&n)
		if err != nil {
			return fmt.Errorf("%d connections of killed processes: %w", n, err)
		}
	}
	return nil
}
