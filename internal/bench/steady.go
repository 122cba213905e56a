package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// steadyPhase is publishers of single messages at full speed, while Receive hands them to a handler that does nothing: does the
// backlog grow?
type steadyPhase struct {
	publishers int

	mu  sync.Mutex // protects the rest
	got record
	age latencies
}

func (p *steadyPhase) title() string {
	return fmt.Sprintf("receive, %d handlers, while %d publish single messages", receiveConcurrency, p.publishers)
}

func (p *steadyPhase) engine() bool { return true }

func (p *steadyPhase) prepare(ctx context.Context, e *env) error {
	p.got, p.age = record{}, newLatencies()
	if err := e.createTopics(ctx, 1, fastpubsub.Filter{}); err != nil {
		return err
	}
	return e.warmUp(ctx)
}

// steadyRest bounds how long what is left may take after the last publish.
const steadyRest = time.Minute

func (p *steadyPhase) run(ctx context.Context, e *env) (tally, error) {
	var published, handled atomic.Int64
	supply := e.supplies(p.publishers, 1)
	receiving, enough := context.WithCancel(ctx)
	received := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer enough()
	wg.Go(func() {
		received <- e.broker.Receive(receiving, subscription(0), func(_ context.Context, msg fastpubsub.Message) error {
			err := p.note(msg, e.config.PayloadBytes)
			if err == nil {
				handled.Add(1)
			}
			return err
		}, fastpubsub.ReceiveOptions{Consumer: "bench", Concurrency: receiveConcurrency})
	})
	var backlog thirds
	start := time.Now()
	err := workers(ctx, p.publishers+1, func(ctx context.Context, i int) error {
		for now := start; now.Sub(start) < e.config.Duration; now = time.Now() {
			if i == p.publishers {
				backlog.add(now.Sub(start), e.config.Duration, published.Load()-handled.Load())
				if err := sleepFor(ctx, 10*time.Millisecond); err != nil {
					return err
				}
				continue
			}
			n := e.next.Add(1) - 1
			if _, err := e.broker.Publish(ctx, topic, supply[i].take(n, 1, 0, now.UnixNano())...); err != nil {
				return err
			}
			published.Add(1)
		}
		return nil
	})
	if err != nil {
		return tally{}, err
	}
	publishing := time.Since(start)
	atEnd := max(published.Load()-handled.Load(), 0)
	for handled.Load() < published.Load() && time.Since(start)-publishing < steadyRest {
		if len(received) > 0 {
			return tally{}, errors.Join(<-received, fmt.Errorf("%w: Receive ended before all was handled", ErrMismatch))
		}
		if err := sleepFor(ctx, time.Millisecond); err != nil {
			return tally{}, err
		}
	}
	t := tally{messages: handled.Load(), elapsed: time.Since(start)}
	enough()
	if err := <-received; err != nil {
		return tally{}, err
	}
	t.metrics = append(t.metrics, Metric{"published", perSecond, divide(float64(published.Load()), publishing.Seconds())})
	t.metrics = append(t.metrics, backlog.metrics("backlog")...)
	t.metrics = append(t.metrics, Metric{"backlog at the end", count, float64(atEnd)})
	t.metrics = append(t.metrics, p.age.metrics("from send to handler")...)
	return t, nil
}

func (p *steadyPhase) note(msg fastpubsub.Message, size int) error {
	if err := checkPayload(msg.Payload, size); err != nil {
		return err
	}
	now := time.Now().UnixNano()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got.add(number(msg.Payload), now)
	p.age.record(time.Duration(now-sent(msg.Payload)), 1)
	return nil
}

func (p *steadyPhase) check(_ context.Context, e *env) error {
	return verify([]*record{&p.got}, e.next.Load(), everyNumber)
}
