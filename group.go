package fastpubsub

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of group commit.
const (
	// groupRunning is how many statements are on their way for a topic before others gather. With two, eight publishers
	// of one message each had the same rate for half as much again of the server's CPU.
	groupRunning  = 1
	groupMessages = 256                   // in a statement that was gathered; a call that is part of it has a quarter
	groupBytes    = 32 << 10              // of payloads and attributes, likewise
	groupTries    = 4                     // at letting callers come back
	groupWait     = 50 * time.Millisecond // until a call that waits goes on its way all the same
)

// A group gathers small calls of Publish that come at the same time, for one topic, into one statement and one commit.
// A call that finds no statement on its way goes at once, with its own context. Others wait until that one is done; then
// all that wait go together. If that takes long, because a connection is stuck, one more goes at once, and the others
// behind that. Every call has been checked before, so that none can fail because of another one's messages.
//
// A goroutine runs while a gathered statement does. When all of its calls were cancelled, so is the statement, and the
// goroutine ends shortly after they have returned.
type group struct {
	send sendFunc

	mu      sync.Mutex // protects the rest
	running map[string]int
	waiting map[string][]*groupCall
}

type groupCall struct {
	ctx        context.Context
	payloads   []string
	attributes []*string
	bytes      int
	done       chan struct{} // closed when ids and err are set
	ids        []ID
	err        error
}

func newGroup(send sendFunc) *group {
	return &group{send: send, running: map[string]int{}, waiting: map[string][]*groupCall{}}
}

func (g *group) publish(ctx context.Context, topicID string, payloads []string, attributes []*string) ([]ID, error) {
	c := &groupCall{ctx: ctx, payloads: payloads, attributes: attributes, done: make(chan struct{})}
	for _, p := range payloads {
		c.bytes += len(p)
	}
	for _, a := range attributes {
		if a != nil {
			c.bytes += len(*a)
		}
	}
	if len(payloads) > groupMessages/4 || c.bytes > groupBytes/4 {
		return g.send(ctx, topicID, payloads, attributes)
	}

	g.mu.Lock()
	if g.running[topicID] < groupRunning {
		g.running[topicID]++
		g.mu.Unlock()
		defer g.next(topicID)
		return g.send(ctx, topicID, payloads, attributes)
	}
	g.waiting[topicID] = append(g.waiting[topicID], c)
	g.mu.Unlock()

	timer := time.NewTimer(groupWait)
	defer timer.Stop()
	select {
	case <-c.done:
		return c.ids, c.err
	case <-timer.C:
		if g.leave(topicID, c) {
			g.mu.Lock()
			g.running[topicID]++
			g.mu.Unlock()
			defer g.next(topicID)
			return g.send(ctx, topicID, payloads, attributes)
		}
	case <-ctx.Done():
		g.leave(topicID, c)
		return nil, ctx.Err()
	}
	select { // its statement is on its way
	case <-c.done:
		return c.ids, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// leave takes a call out of those that wait, unless it has gone already.
func (g *group) leave(topicID string, c *groupCall) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting[topicID], c)
	if i < 0 {
		return false
	}
	g.waiting[topicID] = slices.Delete(g.waiting[topicID], i, i+1)
	return true
}

// next is called when a statement for a topic is done. It sends what has gathered meanwhile.
func (g *group) next(topicID string) {
	if calls := g.gather(topicID); len(calls) > 0 {
		go func() {
			for ; len(calls) > 0; calls = g.gather(topicID) {
				g.sendAll(topicID, calls)
				g.letComeBack(topicID, len(calls))
			}
		}()
	}
}

// letComeBack lets others run whose n calls have just returned: those that publish in a loop come again at once, and go
// with who waits already, in place of waiting while the others are on their way. It takes microseconds if there are none.
func (g *group) letComeBack(topicID string, n int) {
	g.mu.Lock()
	n += len(g.waiting[topicID])
	g.mu.Unlock()
	for range groupTries {
		runtime.Gosched()
		g.mu.Lock()
		all := len(g.waiting[topicID]) >= n
		g.mu.Unlock()
		if all {
			return
		}
	}
}

// gather takes as many of the calls that wait as a statement may have. When there is none, it counts one statement less
// that is on its way.
func (g *group) gather(topicID string) []*groupCall {
	g.mu.Lock()
	defer g.mu.Unlock()
	waiting := g.waiting[topicID]
	n, messages, bytes := 0, 0, 0
	for _, c := range waiting {
		messages += len(c.payloads)
		bytes += c.bytes
		if messages > groupMessages || bytes > groupBytes {
			break
		}
		n++
	}
	calls := waiting[:n:n]
	switch {
	case n < len(waiting):
		g.waiting[topicID] = waiting[n:]
	default:
		delete(g.waiting, topicID)
	}
	if n == 0 {
		if g.running[topicID]--; g.running[topicID] == 0 {
			delete(g.running, topicID)
		}
	}
	return calls
}

// sendAll sends calls in one statement, which is cancelled when all of them have been.
func (g *group) sendAll(topicID string, calls []*groupCall) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(calls[0].ctx))
	defer cancel()
	var payloads []string
	var attributes []*string
	var left atomic.Int32
	left.Store(int32(len(calls)))
	for _, c := range calls {
		stop := context.AfterFunc(c.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
		defer stop()
		if c.attributes != nil && attributes == nil {
			attributes = make([]*string, len(payloads), len(payloads)+len(c.payloads))
		}
		payloads = append(payloads, c.payloads...)
		if attributes != nil {
			attributes = append(attributes, c.attributes...)
			attributes = append(attributes, make([]*string, len(payloads)-len(attributes))...)
		}
	}
	var ids []ID
	var err error
	func() {
		defer func() { // of a hook of the pool; a caller could have recovered from it
			if v := recover(); v != nil {
				err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			}
		}()
		ids, err = g.send(ctx, topicID, payloads, attributes)
	}()
	for _, c := range calls {
		if c.err = err; err == nil {
			c.ids, ids = ids[:len(c.payloads):len(c.payloads)], ids[len(c.payloads):]
		}
		close(c.done)
	}
}
