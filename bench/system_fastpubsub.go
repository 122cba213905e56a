package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/migrations"
)

const topic = "bench"

func subscription(group int) string { return fmt.Sprintf("bench-%d", group) }

// fastpubsubSystem is the library as its README shows it.
var fastpubsubSystem = &system{
	name:   "fastpubsub",
	fanOut: true,
	contract: contract{
		Publish:    "Broker.Publish, all messages of a call in one; concurrent small calls share a commit, as they do by default",
		Consume:    "Broker.Receive with its defaults: 16 handlers a subscription, woken by notifications; Broker.Run maintains meanwhile",
		Ack:        "each message by itself, after its handler has returned; Receive sends acks together. At least once, with attempts and dead letters",
		Durability: sameDurability,
	},
	open: func(ctx context.Context, o opening) (session, error) { return openFastpubsub(ctx, o, false) },
}

// consumeSystem is the same with calls of Consume and Ack.
var consumeSystem = &system{
	name:   "fastpubsub-consume",
	again:  true,
	fanOut: true,
	contract: contract{
		Publish:    "as fastpubsub",
		Consume:    "4 consumers (1 a subscription where there are several) that call Broker.Consume for up to 100 messages",
		Ack:        "Broker.Ack with the ids of all that were taken, after handling",
		Durability: sameDurability,
	},
	open: func(ctx context.Context, o opening) (session, error) { return openFastpubsub(ctx, o, true) },
}

type fastpubsubSession struct {
	goSession
	broker  *fastpubsub.Broker
	groups  int
	retry   bool
	calls   bool // Consume and Ack rather than Receive
	stop    context.CancelFunc
	running sync.WaitGroup
	err     error // of Run; read it after running
}

func openFastpubsub(ctx context.Context, o opening, calls bool) (_ session, err error) {
	pool, err := newPool(ctx, o.url, o.clients+max(consumers, min(o.groups, 16))+4)
	if err != nil {
		return nil, err
	}
	s := &fastpubsubSession{goSession: goSession{pool: pool}, groups: o.groups, retry: o.retry, calls: calls}
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	if err := migrations.Up(ctx, pool.Config().ConnConfig, fastpubsub.DefaultSchema); err != nil {
		return nil, err
	}
	if s.broker, err = fastpubsub.New(pool, fastpubsub.Config{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		return nil, err
	}
	if _, err := s.broker.CreateTopic(ctx, topic); err != nil {
		return nil, err
	}
	for group := range o.groups {
		if _, err := s.broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: subscription(group), TopicID: topic}); err != nil {
			return nil, err
		}
	}
	s.send = func(ctx context.Context, _ int, payloads [][]byte) error {
		msgs := make([]fastpubsub.NewMessage, len(payloads))
		for i, p := range payloads {
			msgs[i].Payload = p
		}
		_, err := s.broker.Publish(ctx, topic, msgs...)
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.running.Go(func() { s.err = s.broker.Run(running) })
	return s, nil
}

func (s *fastpubsubSession) stored(ctx context.Context) (int64, error) {
	m, err := s.broker.Metrics(ctx, subscription(0))
	return m.Available, err
}

func (s *fastpubsubSession) consume(ctx context.Context, got *received) error {
	var g errgroup.Group
	for group := range s.groups {
		if !s.calls {
			g.Go(func() error {
				return s.broker.Receive(ctx, subscription(group), func(_ context.Context, msg fastpubsub.Message) error {
					got.message(group, msg.Payload)
					return nil
				}, fastpubsub.ReceiveOptions{})
			})
			continue
		}
		n := consumers
		if s.groups > 1 {
			n = 1
		}
		for i := range n {
			g.Go(func() error { return s.consumeCalls(ctx, group, fmt.Sprintf("consumer-%d", i), got) })
		}
	}
	return g.Wait()
}

func (s *fastpubsubSession) consumeCalls(ctx context.Context, group int, name string, got *received) error {
	options := fastpubsub.ConsumeOptions{Consumer: name, Max: takeBatch, Wait: time.Second}
	return poll(ctx, s.retry, func(whole context.Context) (int, error) {
		msgs, err := s.broker.Consume(ctx, subscription(group), options)
		if err != nil && ctx.Err() != nil {
			return 0, nil // it was waiting
		}
		if err != nil || len(msgs) == 0 {
			return 0, err
		}
		ids := make([]fastpubsub.ID, len(msgs))
		for i, msg := range msgs {
			got.message(group, msg.Payload)
			ids[i] = msg.ID
		}
		for {
			_, err := s.broker.Ack(whole, subscription(group), ids)
			if err == nil || !s.retry || pause(ctx, retryPause) != nil {
				return len(msgs), err
			}
		}
	})
}

func (s *fastpubsubSession) close() error {
	s.stop()
	s.running.Wait()
	s.pool.Close()
	if errors.Is(s.err, context.Canceled) {
		return nil
	}
	return s.err
}
