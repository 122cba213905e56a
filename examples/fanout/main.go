// Command fanout publishes orders once. Three subscriptions get them, each those that its filter lets through: the copies are
// independent, each has acks and retries of its own.
//
//	go run ./examples/fanout
package main

import (
	"context"
	"fmt"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/examples/internal/demo"
)

func main() { demo.Main(example) }

func example(ctx context.Context, db demo.DB) error {
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		return err
	}
	if _, err := broker.CreateTopic(ctx, "orders"); err != nil {
		return err
	}

	// A filter names members of the payload, and for each the values that it may have. Subscriptions are created before
	// what they are to get is published.
	subscriptions := []struct {
		id, filter string
		want       int
	}{
		{"audit", `null`, 4},
		{"south", `{"country": ["BR", "AR"]}`, 3},
		{"south-gifts", `{"country": ["BR", "AR"], "gift": [true]}`, 1},
	}
	for _, s := range subscriptions {
		filter, err := fastpubsub.ParseFilter([]byte(s.filter))
		if err != nil {
			return err
		}
		if _, err := broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: s.id, TopicID: "orders", Filter: filter}); err != nil {
			return err
		}
	}

	type order struct {
		Country string `json:"country"`
		Gift    bool   `json:"gift"`
	}
	_, err = broker.Publish(ctx, "orders",
		fastpubsub.JSON(order{Country: "BR"}),
		fastpubsub.JSON(order{Country: "JP", Gift: true}),
		fastpubsub.JSON(order{Country: "AR", Gift: true}),
		fastpubsub.JSON(order{Country: "BR"}))
	if err != nil {
		return err
	}

	for _, s := range subscriptions {
		msgs, err := broker.Consume(ctx, s.id, fastpubsub.ConsumeOptions{Consumer: "worker-1"})
		if err != nil {
			return err
		}
		fmt.Printf("%s, filter %s, gets %d of 4:\n", s.id, s.filter, len(msgs))
		if len(msgs) != s.want {
			return fmt.Errorf("%s got %d messages, not %d", s.id, len(msgs), s.want)
		}
		var ids []fastpubsub.ID
		for _, msg := range msgs {
			fmt.Printf("  %s\n", msg.Payload)
			ids = append(ids, msg.ID)
		}
		if n, err := broker.Ack(ctx, s.id, ids); err != nil || n != s.want {
			return fmt.Errorf("acked %d messages for %s: %w", n, s.id, err)
		}
	}
	return nil
}
