// Command cleanup does maintenance once and ends, as a cron job does, for applications in which nobody calls Broker.Run. The
// commands cleanup_stuck_messages and cleanup_acked_messages of fastpubsub do the same.
//
//	go run ./examples/cleanup
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/examples/internal/demo"
)

func main() { demo.Main(example) }

// cleanup is the cron job. Run it every few minutes; several at once do no harm.
func cleanup(ctx context.Context, broker *fastpubsub.Broker, olderThan time.Duration) (fastpubsub.Stuck, fastpubsub.Freed, error) {
	// Messages whose consumers died are delivered again, or become dead letters.
	stuck, err := broker.CleanupStuck(ctx)
	// Tables of messages that all subscriptions have acked are emptied.
	freed, err2 := broker.CleanupAcked(ctx, olderThan)
	return stuck, freed, errors.Join(err, err2)
}

func example(ctx context.Context, db demo.DB) error {
	// Patience is for a pg_dump that is running; here nobody need wait for one.
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema,
		Maintenance: fastpubsub.MaintenanceSettings{Patience: time.Nanosecond}})
	if err != nil {
		return err
	}
	if err := use(ctx, broker); err != nil {
		return err
	}

	// Cron would come back later, and with an hour for olderThan.
	var released int
	var bytes int64
	for released < 3 || bytes == 0 {
		stuck, freed, err := cleanup(ctx, broker, 0)
		if err != nil {
			return err
		}
		if stuck.Released > 0 || freed.Bytes > 0 {
			fmt.Printf("cleanup: released %d messages, gave %d kB back\n", stuck.Released, freed.Bytes/1000)
		}
		released += stuck.Released
		bytes += freed.Bytes
		time.Sleep(100 * time.Millisecond)
	}

	m, err := broker.Metrics(ctx, "archive")
	if err != nil {
		return err
	}
	fmt.Printf("afterwards: acked %d, available %d\n", m.Acked, m.Available)
	if m.Acked != 5000 || m.Available != 3 || released != 3 {
		return fmt.Errorf("released %d, and the counts are %+v", released, m)
	}
	return nil
}

// use publishes and acks 5,000 messages. Then a consumer takes 3 more and is never heard of again.
func use(ctx context.Context, broker *fastpubsub.Broker) error {
	if _, err := broker.CreateTopic(ctx, "readings"); err != nil {
		return err
	}
	if _, err := broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "archive", TopicID: "readings"}); err != nil {
		return err
	}
	msgs := make([]fastpubsub.NewMessage, 1000)
	for i := range msgs {
		msgs[i] = fastpubsub.JSON(map[string]any{"sensor": i, "temperature": 20})
	}
	for range 5 {
		if _, err := broker.Publish(ctx, "readings", msgs...); err != nil {
			return err
		}
		got, err := broker.Consume(ctx, "archive", fastpubsub.ConsumeOptions{Consumer: "archiver", Max: len(msgs)})
		if err != nil {
			return err
		}
		ids := make([]fastpubsub.ID, len(got))
		for i, msg := range got {
			ids[i] = msg.ID
		}
		if _, err := broker.Ack(ctx, "archive", ids); err != nil {
			return err
		}
	}
	if _, err := broker.Publish(ctx, "readings", msgs[:3]...); err != nil {
		return err
	}
	_, err := broker.Consume(ctx, "archive", fastpubsub.ConsumeOptions{Consumer: "dies", AckDeadline: time.Second})
	fmt.Println("5000 messages acked, 3 with a consumer that has died")
	return err
}
