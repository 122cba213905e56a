package fastpubsub

import (
	"context"
	"sync"
	"time"
)

// turns are those of consumers that wait. Of all that wait for one subscription one looks whether there is something, again
// and again; the others wait for its turn to end, which is when it got messages or gave up. So what waiting costs the
// database depends on how many subscriptions are waited for, not on how many consumers wait.
type turns struct {
	mu   sync.Mutex // protects subs, and wanted of its elements
	subs map[string]*turn
}

type turn struct {
	wanted int           // by so many consumers, the one that has it included
	free   chan struct{} // has an element while nobody has the turn
}

// take waits for a subscription's turn, for d at most. If ok is false there was none in time. Otherwise the caller calls
// done in the end; and waited says that somebody else had the turn until now.
func (t *turns) take(ctx context.Context, subscriptionID string, d time.Duration) (done func(), waited, ok bool) {
	t.mu.Lock()
	if t.subs == nil {
		t.subs = map[string]*turn{}
	}
	mine := t.subs[subscriptionID]
	if mine == nil {
		mine = &turn{free: make(chan struct{}, 1)}
		mine.free <- struct{}{}
		t.subs[subscriptionID] = mine
	}
	mine.wanted++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.wanted--; mine.wanted == 0 {
			delete(t.subs, subscriptionID)
		}
	}
	done = func() {
		mine.free <- struct{}{}
		leave()
	}
	select {
	case <-mine.free:
		return done, false, true
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-mine.free:
		return done, true, true
	case <-timer.C:
	case <-ctx.Done():
	}
	leave()
	return nil, true, false
}

// looksPerSecond bounds how often a broker looks at all subscriptions that are waited for.
const looksPerSecond = 1000

// pause is how long a consumer that has the turn waits, on average, before it looks again.
func (t *turns) pause() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(pollInterval, time.Duration(len(t.subs))*time.Second/looksPerSecond)
}
