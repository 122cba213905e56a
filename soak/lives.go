package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
)

// lives are subscriptions and topics that are deleted while others use them, and made again under the same names. The last of
// each is left, to be accounted for.
type lives struct {
	*process
	mu    sync.Mutex // protects alive
	alive map[string]bool
}

// persist calls do until it has succeeded, or until a call of its that was cut off turns out to have done so.
func persist(ctx context.Context, done error, do func() error) error {
	for {
		err := do()
		if err == nil || errors.Is(err, done) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !explained(err) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (l *lives) createTopic(ctx context.Context, id string) error {
	return persist(ctx, fastpubsub.ErrExists, func() error {
		_, err := l.broker.CreateTopic(ctx, id)
		return err
	})
}

func (l *lives) subscribe(ctx context.Context, id string, made crashtest.Made) error {
	err := l.record.Do(crashtest.Entry{Caller: "for " + id, Call: crashtest.Subscribe, Subscription: id, Made: &made},
		func() ([]crashtest.Message, int, error) {
			return nil, 0, persist(ctx, fastpubsub.ErrExists, func() error {
				_, err := l.broker.CreateSubscription(ctx, made.Subscription(id))
				return err
			})
		})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alive[id] = err == nil
	return err
}

// unsubscribe deletes subscriptions by what do does.
func (l *lives) unsubscribe(ctx context.Context, ids []string, do func() error) error {
	if len(ids) == 0 {
		return persist(ctx, fastpubsub.ErrNotFound, do)
	}
	err := l.record.Do(crashtest.Entry{Caller: "for " + ids[0], Call: crashtest.Unsubscribe, Subscription: ids[0]},
		func() ([]crashtest.Message, int, error) {
			return nil, 0, l.unsubscribe(ctx, ids[1:], do)
		})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alive[ids[0]] = false // or so it may be
	return err
}

// during lets others work, and ends them half of the time before and half of the time after end.
func (l *lives) during(ctx context.Context, rng *rand.Rand, work func(p *process, ctx context.Context), end func() error) error {
	working, stop := context.WithCancel(ctx)
	defer stop()
	others := &process{processConfig: l.processConfig, pool: l.pool, lazy: l.lazy, broker: l.broker, record: l.record}
	others.next.Store(l.next.Add(livesMessages) - livesMessages)
	work(others, working)
	pause(ctx, rng, 8*time.Second)
	if ctx.Err() != nil || rng.IntN(2) == 0 {
		stop()
		others.wg.Wait()
	}
	var err error
	if ctx.Err() == nil {
		err = end()
	}
	stop()
	others.wg.Wait()
	return err
}

// livesMessages are the numbers that a life may use up.
const livesMessages = 10_000

// visitor is a subscription of a topic that goes on.
func (l *lives) visitor(ctx context.Context, rng *rand.Rand) error {
	const id = "visitor"
	made := crashtest.Made{Topic: "main", Attempts: 3}
	if err := l.subscribe(ctx, id, made); err != nil {
		return err
	}
	return l.during(ctx, rng, func(p *process, ctx context.Context) {
		for i := range 2 {
			p.consume(ctx, fmt.Sprintf("consumer %d of %s", i, id), id, made, fastpubsub.ErrNotFound)
		}
	}, func() error {
		return l.unsubscribe(ctx, []string{id}, func() error { return l.broker.DeleteSubscription(ctx, id) })
	})
}

// brief is a topic that is deleted with its subscriptions.
func (l *lives) brief(ctx context.Context, rng *rand.Rand) error {
	const topic = "brief"
	made := map[string]crashtest.Made{"brief-all": {Topic: topic, Attempts: 3}, "brief-some": {Topic: topic, Attempts: 3, Kinds: []int{0, 9}}}
	if err := l.createTopic(ctx, topic); err != nil {
		return err
	}
	var ids []string
	for id, made := range made {
		if err := l.subscribe(ctx, id, made); err != nil {
			return err
		}
		ids = append(ids, id)
	}
	return l.during(ctx, rng, func(p *process, ctx context.Context) {
		p.repeat(ctx, "publisher to "+topic, func(rng *rand.Rand, caller string) error {
			pause(ctx, rng, 200*time.Millisecond)
			return p.publish(ctx, rng, caller, topic)
		}, fastpubsub.ErrNotFound)
		for id, made := range made {
			p.consume(ctx, "consumer of "+id, id, made, fastpubsub.ErrNotFound)
		}
	}, func() error {
		return l.unsubscribe(ctx, ids, func() error { return l.broker.DeleteTopic(ctx, topic) })
	})
}
