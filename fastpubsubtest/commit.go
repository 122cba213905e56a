package fastpubsubtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// LoseCommit makes the connection break at the next commit of a transaction of [Kit].Pool: the server commits, and the
// program gets an error and cannot know. It is the transaction of whoever commits first: that of a handler, a publisher, or
// the Broker's own in [fastpubsub.Broker.InTx], ReceiveTx and CreateSubscription. Statements outside of transactions
// do not count, nor do rollbacks.
//
// The test fails if no commit has come when it ends. It ends the test if the Kit has no pool of its own.
func (k *Kit) LoseCommit(tb testing.TB) {
	tb.Helper()
	k.arm(tb, "LoseCommit", &commitFault{lose: true, reached: make(chan struct{})})
}

// HoldCommit makes the next commit of a transaction of [Kit].Pool wait, as if it were slow: until Release is called, its
// messages are published but nobody sees them, while those of others overtake. Which transaction that is, is as with
// [Kit.LoseCommit]. Whoever commits waits, so that must be in another goroutine; a ctx that ends there breaks the
// connection, and the transaction is rolled back.
//
// The end of the test releases it, and the test fails if no commit has come by then. It ends the test if the Kit has no
// pool of its own.
func (k *Kit) HoldCommit(tb testing.TB) *HeldCommit {
	tb.Helper()
	f := &commitFault{reached: make(chan struct{}), released: make(chan struct{})}
	h := &HeldCommit{f: f}
	tb.Cleanup(h.Release)
	k.arm(tb, "HoldCommit", f)
	return h
}

// A HeldCommit is a commit that waits, or one that is to.
type HeldCommit struct {
	f    *commitFault
	once sync.Once
}

// Wait returns when a commit has come, and is held. It ends the test if none has within 30 seconds.
func (h *HeldCommit) Wait(tb testing.TB) {
	tb.Helper()
	timer := time.NewTimer(waitTimeout)
	defer timer.Stop()
	select {
	case <-h.f.reached:
	case <-timer.C:
		tb.Fatalf("HeldCommit: no transaction was committed within %v", waitTimeout)
	}
}

// Release lets the commit go on, or come, without waiting for it. Further calls do nothing.
func (h *HeldCommit) Release() { h.once.Do(func() { close(h.f.released) }) }

const waitTimeout = 30 * time.Second

func (k *Kit) arm(tb testing.TB, name string, f *commitFault) {
	tb.Helper()
	if k.commits == nil {
		tb.Fatalf("%s: the Kit works on a pool that was given to it, whose connections it cannot break: use Options.URL", name)
	}
	k.commits.add(f)
	tb.Cleanup(func() {
		if k.commits.remove(f) {
			tb.Errorf("%s: no transaction was committed", name)
		}
	})
}

// commitFault is what happens to one commit.
type commitFault struct {
	lose     bool
	reached  chan struct{} // closed when the commit comes
	released chan struct{} // closed when it may go on, unless it is lost
}

// commits are the faults to come, the first first.
type commits struct {
	mu   sync.Mutex // protects next
	next []*commitFault
}

func (c *commits) add(f *commitFault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = append(c.next, f)
}

// remove takes back a fault, and returns false if it has happened.
func (c *commits) remove(f *commitFault) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, other := range c.next {
		if other == f {
			c.next = append(c.next[:i:i], c.next[i+1:]...)
			return true
		}
	}
	return false
}

func (c *commits) take() *commitFault {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.next) == 0 {
		return nil
	}
	f := c.next[0]
	c.next = c.next[1:]
	close(f.reached)
	return f
}

// watch is pgx's hook for connections, above TLS.
func (c *commits) watch(_ context.Context, _ *pgconn.Config, inner net.Conn) (net.Conn, error) {
	return &conn{Conn: inner, commits: c, interrupted: make(chan struct{})}, nil
}

// conn sees commits on their way to the server.
type conn struct {
	net.Conn
	commits *commits
	losing  atomic.Bool // the answer to come is not for the client
	answer  answer      // so far; of whoever reads, which is one at a time

	interrupt   sync.Once
	interrupted chan struct{} // closed when the client gives up
}

func (c *conn) Write(p []byte) (int, error) {
	if isCommit(p) {
		if f := c.commits.take(); f != nil && f.lose {
			c.losing.Store(true)
		} else if f != nil {
			select {
			case <-f.released:
			case <-c.interrupted:
				return 0, os.ErrDeadlineExceeded
			}
		}
	}
	return c.Conn.Write(p)
}

// Read gives the answer to a commit that is lost to nobody. Another goroutine may have begun to read before that was sent.
func (c *conn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.losing.Load() {
			return n, err
		}
		if c.answer.ends(p[:n]) {
			_ = c.Conn.Close()
			return 0, io.ErrUnexpectedEOF
		}
	}
}

// SetDeadline is how pgx ends a call whose ctx has ended.
func (c *conn) SetDeadline(t time.Time) error {
	if !t.IsZero() && time.Until(t) <= 0 {
		c.interrupt.Do(func() { close(c.interrupted) })
	}
	return c.Conn.SetDeadline(t)
}

func (c *conn) Close() error {
	c.interrupt.Do(func() { close(c.interrupted) })
	return c.Conn.Close()
}

// isCommit says whether p is a simple query that commits, which is how pgx does it.
func isCommit(p []byte) bool {
	const head = 5 // the type of a message and its length
	if len(p) < head || p[0] != 'Q' || int(binary.BigEndian.Uint32(p[1:]))+1 != len(p) {
		return false
	}
	return bytes.EqualFold(bytes.TrimRight(p[head:], "\x00; "), []byte("commit"))
}

// answer follows what the server says, message by message.
type answer struct {
	head []byte // of the message that has begun: its type and length
	left int    // of its body
}

// ends reads on and says whether the server is ready for the next query, which ends its answer.
func (a *answer) ends(p []byte) bool {
	for len(p) > 0 {
		if len(a.head) < 5 {
			n := min(5-len(a.head), len(p))
			a.head = append(a.head, p[:n]...)
			if p = p[n:]; len(a.head) < 5 {
				return false
			}
			a.left = int(binary.BigEndian.Uint32(a.head[1:])) - 4
		}
		n := min(a.left, len(p))
		a.left -= n
		if p = p[n:]; a.left > 0 {
			return false
		}
		if a.head[0] == 'Z' {
			return true
		}
		a.head = a.head[:0]
	}
	return false
}
