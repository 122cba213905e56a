package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// idlePhase is consumers of one process that wait and get nothing: what they cost. In the end each gets a message.
type idlePhase struct {
	subscriptions int // that they share, or one for each

	mu  sync.Mutex // protects the rest
	got []record   // of each subscription
}

const (
	idleConsumers = 1000
	// idleWait bounds how long anybody waits, beyond the measured time.
	idleWait = time.Minute
)

func (p *idlePhase) title() string {
	return fmt.Sprintf("idle, %d consumers that wait, %d subscription%s", idleConsumers, p.subscriptions, plural(p.subscriptions))
}

func (p *idlePhase) engine() bool { return true }

func (p *idlePhase) prepare(ctx context.Context, e *env) error {
	p.got = make([]record, p.subscriptions)
	return e.createTopics(ctx, p.subscriptions, fastpubsub.Filter{})
}

const countListeners = `
SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE application_name = $1 AND query LIKE 'LISTEN %'`

func (p *idlePhase) run(ctx context.Context, e *env) (tally, error) {
	broker, stop, err := e.listening(ctx)
	if err != nil {
		return tally{}, err
	}
	defer stop()
	nobody, err := e.idleCPU(ctx)
	if err != nil {
		return tally{}, err
	}
	waiting, cancel := context.WithTimeout(ctx, e.config.Duration+settleWithin+idleWait)
	defer cancel()
	var listeners int64
	var all cpuShare
	var released, start time.Time
	err = workers(waiting, idleConsumers+1, func(ctx context.Context, i int) error {
		if i < idleConsumers {
			return p.wait(ctx, e, broker, i%p.subscriptions)
		}
		if err := e.settle(ctx); err != nil {
			return err
		}
		start = time.Now()
		var err error
		if all, err = e.idleCPU(ctx); err != nil {
			return err
		}
		if err := e.control.QueryRow(ctx, countListeners, e.schema).Scan(&listeners); err != nil {
			return err
		}
		released = time.Now()
		return p.release(ctx, e, broker)
	})
	if err != nil {
		return tally{}, err
	}
	return tally{idleConsumers, time.Since(start), []Metric{
		{"client CPU a second, all wait", seconds, all.client},
		{"server CPU a second, all wait", seconds, all.server},
		{"client CPU a second, nobody waits", seconds, nobody.client},
		{"server CPU a second, nobody waits", seconds, nobody.server},
		{"connections that listen", count, float64(listeners)},
		{"from publish until each has a message", seconds, time.Since(released).Seconds()},
	}}, nil
}

// A cpuShare is what was used in a second.
type cpuShare struct{ client, server float64 }

// idleCPU measures for the duration.
func (e *env) idleCPU(ctx context.Context) (cpuShare, error) {
	start, client, server := time.Now(), clientCPU(), e.postmaster.cpu()
	if err := sleepFor(ctx, e.config.Duration); err != nil {
		return cpuShare{}, err
	}
	elapsed := time.Since(start).Seconds()
	return cpuShare{(clientCPU() - client).Seconds() / elapsed, (e.postmaster.cpu() - server).Seconds() / elapsed}, nil
}

// wait waits for a message and acks it.
func (p *idlePhase) wait(ctx context.Context, e *env, broker *fastpubsub.Broker, sub int) error {
	msgs, err := broker.Consume(ctx, subscription(sub), fastpubsub.ConsumeOptions{Consumer: "idle", Max: 1, Wait: time.Hour})
	if err != nil {
		return err
	}
	if len(msgs) != 1 {
		return fmt.Errorf("%w: a consumer that waited got %d messages", ErrMismatch, len(msgs))
	}
	if err := checkPayload(msgs[0].Payload, e.config.PayloadBytes); err != nil {
		return err
	}
	p.mu.Lock()
	p.got[sub].add(number(msgs[0].Payload), 0)
	p.mu.Unlock()
	if n, err := broker.Ack(ctx, subscription(sub), []fastpubsub.ID{msgs[0].ID}); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("%w: the ack of a message took effect on %d", ErrMismatch, n))
	}
	return nil
}

// release publishes a message for each consumer.
func (p *idlePhase) release(ctx context.Context, e *env, broker *fastpubsub.Broker) error {
	n := idleConsumers / p.subscriptions
	first := e.next.Add(int64(n)) - int64(n)
	supply := newBatches(seed, 0, 1, n, e.config.PayloadBytes)
	_, err := broker.Publish(ctx, topic, supply.take(first, n, 0, 0)...)
	return err
}

func (p *idlePhase) check(_ context.Context, e *env) error {
	for sub := range p.got {
		if err := verify([]*record{&p.got[sub]}, e.next.Load(), everyNumber); err != nil {
			return fmt.Errorf("%s: %w", subscription(sub), err)
		}
	}
	return nil
}
