package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// drainPhase is consumers at full speed on a backlog, until it is empty.
type drainPhase struct {
	backlog       int // messages
	publishBatch  int
	subscriptions int
	share         float64 // of the messages that match; 0 is no filter
	failures      float64 // share of the messages that are nacked once, evenly spread; below 1, or 1 for the workload nack

	consumers []consumers // of each subscription
}

func (p *drainPhase) title() string {
	if p.share > 0 {
		return fmt.Sprintf("drain, filter that matches %.3g %%", 100*p.share)
	}
	switch {
	case p.failures == 1:
		return fmt.Sprintf("drain, all nacked once, published %d a call", p.publishBatch)
	case p.failures > 0:
		return fmt.Sprintf("drain, %.3g %% nacked once, published %d a call", 100*p.failures, p.publishBatch)
	}
	return fmt.Sprintf("drain, %d subscription%s, published %d a call", p.subscriptions, plural(p.subscriptions), p.publishBatch)
}

func (p *drainPhase) engine() bool { return true }

func (p *drainPhase) wanted(number int64) bool { return p.share == 0 || matches(number, p.share) }

func (p *drainPhase) prepare(ctx context.Context, e *env) error {
	var filter fastpubsub.Filter
	if p.share > 0 {
		var err error
		if filter, err = fastpubsub.ParseFilter([]byte(filterJSON)); err != nil {
			return err
		}
	}
	if err := e.createTopics(ctx, p.subscriptions, filter); err != nil {
		return err
	}
	if err := e.warmUp(ctx); err != nil {
		return err
	}
	if err := e.fill(ctx, p.backlog, p.publishBatch, p.share); err != nil {
		return err
	}
	p.consumers = make([]consumers, p.subscriptions)
	for sub := range p.consumers {
		p.consumers[sub] = make(consumers, e.config.Consumers)
		for i := range p.consumers[sub] {
			p.consumers[sub][i] = newConsumer(e, i, subscription(sub))
			if p.failures > 0 {
				p.consumers[sub][i].ackAt = p.ackAt
			}
		}
	}
	return nil
}

// ackAt is 2 for what fails once.
func (p *drainPhase) ackAt(number int64) int {
	if matches(number, p.failures) {
		return 2
	}
	return 1
}

// patience is how many empty answers end a drain that has not got everything: a filter can make an answer empty before
// the log's end, and so can a message that another consumer took a moment ago.
const patience = 20

func (p *drainPhase) run(ctx context.Context, e *env) (tally, error) {
	var expected int64
	for n := range int64(p.backlog) {
		if p.wanted(n) {
			expected++
		}
	}
	// What another consumer has yet to nack is waited for.
	var wait time.Duration
	if p.failures > 0 {
		wait = longestWait
	}
	got := make([]atomic.Int64, p.subscriptions)
	start := time.Now()
	err := workers(ctx, e.config.Consumers, func(ctx context.Context, i int) error {
		for j := range p.subscriptions { // each begins with another
			sub := (i + j) % p.subscriptions
			for empty := 0; got[sub].Load() < expected && empty < patience; {
				c := p.consumers[sub][i]
				before := c.messages
				n, err := c.next(ctx, wait)
				if err != nil {
					return err
				}
				got[sub].Add(c.messages - before)
				if n == 0 {
					empty++
				}
			}
		}
		return nil
	})
	t := p.all().tally(start)
	if p.share > 0 {
		// What counts is what was examined: the whole backlog, when the last match was acked.
		t.metrics = append(t.metrics, Metric{"messages that matched", perSecond, divide(float64(t.messages), t.elapsed.Seconds())})
		t.messages = int64(p.backlog)
	}
	return t, err
}

func (p *drainPhase) all() consumers {
	var all consumers
	for _, c := range p.consumers {
		all = append(all, c...)
	}
	return all
}

func (p *drainPhase) check(context.Context, *env) error {
	for sub, all := range p.consumers {
		if err := verify(all.records(), int64(p.backlog), p.wanted); err != nil {
			return fmt.Errorf("%s: %w", subscription(sub), err)
		}
		var nacked, failures int64
		for _, c := range all {
			nacked += c.nacked
		}
		for n := range int64(p.backlog) {
			failures += int64(p.ackAt(n) - 1)
		}
		if nacked != failures {
			return fmt.Errorf("%s: %w: %d messages were nacked, not %d", subscription(sub), ErrMismatch, nacked, failures)
		}
	}
	return nil
}
