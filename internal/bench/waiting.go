package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// waitingPhase is publishers at full speed while another process has consumers that wait for something else and hear every
// notification, and while nobody waits, in turns.
type waitingPhase struct{ supply []*batches }

const (
	waitingConsumers = 50
	waitingTurns     = 8 // even
)

func (p *waitingPhase) title() string {
	return fmt.Sprintf("publish, with and without %d consumers that wait", waitingConsumers)
}

func (p *waitingPhase) engine() bool { return true }

func (p *waitingPhase) prepare(ctx context.Context, e *env) error {
	if err := e.createTopics(ctx, 1, fastpubsub.Filter{}); err != nil {
		return err
	}
	p.supply = e.supplies(e.config.Publishers, e.config.Batch)
	return e.warmUp(ctx)
}

func (p *waitingPhase) run(ctx context.Context, e *env) (tally, error) {
	publisher, stop, err := e.listening(ctx)
	if err != nil {
		return tally{}, err
	}
	defer stop()
	d := e.config.Duration / waitingTurns
	if _, err := p.publish(ctx, e, publisher, d); err != nil { // connections are new
		return tally{}, err
	}
	var messages [2]int64 // without and with
	var elapsed [2]time.Duration
	for turn := range waitingTurns {
		with := (turn + 1) / 2 % 2 // 0 1 1 0 0 1 1 0: what changes steadily meanwhile changes both
		start := time.Now()
		n, err := int64(0), error(nil)
		if with == 0 {
			n, err = p.publish(ctx, e, publisher, d)
			elapsed[with] += time.Since(start)
		} else {
			err = e.whileWaiting(ctx, waitingConsumers, func(ctx context.Context) (err error) {
				start = time.Now()
				n, err = p.publish(ctx, e, publisher, d)
				elapsed[with] += time.Since(start)
				return err
			})
		}
		if err != nil {
			return tally{}, err
		}
		messages[with] += n
	}
	without, with := divide(float64(messages[0]), elapsed[0].Seconds()), divide(float64(messages[1]), elapsed[1].Seconds())
	return tally{messages[0] + messages[1], elapsed[0] + elapsed[1], []Metric{
		{"messages while nobody waits", perSecond, without},
		{fmt.Sprintf("messages while %d wait", waitingConsumers), perSecond, with},
		{fmt.Sprintf("messages while %d wait to those while nobody does", waitingConsumers), ratio, divide(with, without)},
	}}, nil
}

// publish publishes for a time, and returns how much.
func (p *waitingPhase) publish(ctx context.Context, e *env, broker *fastpubsub.Broker, d time.Duration) (int64, error) {
	var messages atomic.Int64
	batch := e.config.Batch
	start := time.Now()
	err := workers(ctx, e.config.Publishers, func(ctx context.Context, i int) error {
		for time.Since(start) < d {
			first := e.next.Add(int64(batch)) - int64(batch)
			if _, err := broker.Publish(ctx, topic, p.supply[i].take(first, batch, 0, 0)...); err != nil {
				return err
			}
			messages.Add(int64(batch))
		}
		return nil
	})
	return messages.Load(), err
}

// whileWaiting does something while consumers wait, in a broker of their own that listens, for a subscription that gets nothing.
func (e *env) whileWaiting(ctx context.Context, consumers int, do func(ctx context.Context) error) error {
	broker, stop, err := e.listening(ctx)
	if err != nil {
		return err
	}
	defer stop()
	waiting, enough := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer enough()
	failed := make(chan error, consumers)
	for range consumers {
		wg.Go(func() {
			msgs, err := broker.Consume(waiting, warmTopic, fastpubsub.ConsumeOptions{Consumer: "waiting", Wait: time.Hour})
			switch {
			case err != nil && waiting.Err() == nil:
				failed <- err
			case len(msgs) > 0:
				failed <- fmt.Errorf("%w: who waited for nothing got a message", ErrMismatch)
			}
		})
	}
	if err := e.settle(ctx); err != nil {
		return err
	}
	if err := do(ctx); err != nil {
		return err
	}
	enough()
	wg.Wait()
	if len(failed) > 0 {
		return <-failed
	}
	return nil
}

func (p *waitingPhase) check(ctx context.Context, e *env) error { return e.checkLog(ctx) }
