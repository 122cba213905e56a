package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store"
)

// spillPhase is maintenance that moves a backlog out of the log, step by step, as it does for a subscription that lags when
// its slot is to be emptied.
type spillPhase struct {
	backlog      int
	publishBatch int

	store     *store.Store
	consumers consumers
}

func (p *spillPhase) title() string {
	return fmt.Sprintf("spill, %d messages published %d a call", p.backlog, p.publishBatch)
}

func (p *spillPhase) engine() bool { return true }

func (p *spillPhase) prepare(ctx context.Context, e *env) error {
	if err := e.createTopics(ctx, 1, fastpubsub.Filter{}); err != nil {
		return err
	}
	if err := e.warmUp(ctx); err != nil {
		return err
	}
	if err := e.fill(ctx, p.backlog, p.publishBatch, 0); err != nil {
		return err
	}
	p.store = store.New(e.schema)
	p.consumers = make(consumers, e.config.Consumers)
	for i := range p.consumers {
		p.consumers[i] = newConsumer(e, i, subscription(0))
	}
	return nil
}

func (p *spillPhase) run(ctx context.Context, e *env) (tally, error) {
	step := newLatencies()
	moved := 0
	start := time.Now()
	for moved < p.backlog {
		before := time.Now()
		n, more, err := p.store.Spill(ctx, e.pool, subscription(0))
		if err != nil {
			return tally{}, err
		}
		if n == 0 && !more {
			return tally{}, fmt.Errorf("%w: %d messages moved, not %d", ErrMismatch, moved, p.backlog)
		}
		step.record(time.Since(before), 1)
		moved += n
	}
	return tally{messages: int64(moved), elapsed: time.Since(start), metrics: step.metrics("step")}, nil
}

func (p *spillPhase) check(ctx context.Context, _ *env) error {
	if err := p.consumers.rest(ctx); err != nil {
		return err
	}
	return verify(p.consumers.records(), int64(p.backlog), everyNumber)
}
