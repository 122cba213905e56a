package main

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"
)

var watermillSystem = &system{
	name:   "watermill-sql",
	peer:   true,
	fanOut: true,
	contract: contract{
		Publish: "Publisher.Publish over a pgx pool, DefaultPostgreSQLSchema, all messages of a call in one INSERT",
		Consume: "one Subscriber a consumer group, which reads 100 rows at once, the default, and hands them out one after the other, " +
			"in order; PollInterval 10 ms rather than the default of 1 s",
		Ack: "each message by itself, the offset of a batch once, with the transaction that is open from read to ack. " +
			"At least once, in order; what is read stays in the table until somebody deletes it",
		Durability: sameDurability,
	},
	open: openWatermill,
}

type watermillSession struct {
	goSession
	db     sql.Beginner
	groups int
}

func openWatermill(ctx context.Context, o opening) (_ session, err error) {
	pool, err := newPool(ctx, o.url, o.clients+o.groups+2)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	db := sql.BeginnerFromPgx(pool)
	s := &watermillSession{goSession{pool: pool}, db, o.groups}
	subscriber, err := s.subscriber(0)
	if err != nil {
		return nil, err
	}
	if err := subscriber.SubscribeInitialize(topic); err != nil {
		return nil, err
	}
	publisher, err := sql.NewPublisher(db, sql.PublisherConfig{SchemaAdapter: sql.DefaultPostgreSQLSchema{}}, nil)
	if err != nil {
		return nil, err
	}
	s.send = func(ctx context.Context, _ int, payloads [][]byte) error {
		msgs := make([]*message.Message, len(payloads))
		for i, p := range payloads {
			msgs[i] = message.NewMessageWithContext(ctx, watermill.NewUUID(), p)
		}
		return publisher.Publish(topic, msgs...)
	}
	return s, nil
}

func (s *watermillSession) subscriber(group int) (*sql.Subscriber, error) {
	return sql.NewSubscriber(s.db, sql.SubscriberConfig{
		ConsumerGroup:  fmt.Sprintf("group_%d", group),
		PollInterval:   pollPause,
		SchemaAdapter:  sql.DefaultPostgreSQLSchema{},
		OffsetsAdapter: sql.DefaultPostgreSQLOffsetsAdapter{},
	}, nil)
}

func (s *watermillSession) stored(ctx context.Context) (int64, error) {
	return s.count(ctx, `SELECT count(*) FROM "watermill_`+topic+`"`)
}

func (s *watermillSession) consume(ctx context.Context, got *received) error {
	var g errgroup.Group
	for group := range s.groups {
		subscriber, err := s.subscriber(group)
		if err != nil {
			return err
		}
		// The channel is closed when the subscriber is. What it has handed out is acked before that.
		messages, err := subscriber.Subscribe(context.WithoutCancel(ctx), topic)
		if err != nil {
			return err
		}
		g.Go(func() error {
			for msg := range messages {
				got.message(group, msg.Payload)
				msg.Ack()
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return subscriber.Close()
		})
	}
	return g.Wait()
}
