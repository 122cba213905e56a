package bench

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// wakePhase is how long after the commit a handler begins, while there is nothing else to do.
type wakePhase struct{ otherProcess bool }

func (p *wakePhase) title() string {
	if p.otherProcess {
		return "wake, publisher in another process"
	}
	return "wake, publisher in the same process"
}

func (p *wakePhase) engine() bool { return true }

func (p *wakePhase) prepare(ctx context.Context, e *env) error {
	return e.createTopics(ctx, 1, fastpubsub.Filter{})
}

// wakePause lies between two messages, so that each finds everybody waiting.
const wakePause = 10 * time.Millisecond

func (p *wakePhase) run(ctx context.Context, e *env) (tally, error) {
	consumer, stopConsumer, err := e.listening(ctx)
	if err != nil {
		return tally{}, err
	}
	defer stopConsumer()
	publisher := consumer
	if p.otherProcess {
		var stopPublisher func()
		if publisher, stopPublisher, err = e.listening(ctx); err != nil {
			return tally{}, err
		}
		defer stopPublisher()
	}
	began := make(chan time.Time, 1)
	received := make(chan error, 1)
	receiving, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		received <- consumer.Receive(receiving, subscription(0), func(context.Context, fastpubsub.Message) error {
			began <- time.Now()
			return nil
		}, fastpubsub.ReceiveOptions{Consumer: "bench"})
	})
	latency := newLatencies()
	var messages int64
	start := time.Now()
	for time.Since(start) < e.config.Duration {
		if err := sleepFor(ctx, wakePause/2+rand.N(wakePause)); err != nil {
			return tally{}, err
		}
		if _, err := publisher.Publish(ctx, topic, fastpubsub.NewMessage{Payload: []byte(`{}`)}); err != nil {
			return tally{}, err
		}
		committed := time.Now()
		select {
		case at := <-began:
			if messages++; messages > warmCalls {
				latency.record(at.Sub(committed), 1)
			}
		case err := <-received:
			return tally{}, err
		}
	}
	elapsed := time.Since(start)
	stop()
	if err := <-received; err != nil {
		return tally{}, err
	}
	return tally{messages, elapsed, latency.metrics("commit to handler")}, nil
}

func (p *wakePhase) check(context.Context, *env) error { return nil }
