// Command workers collects payments with a pool of workers. What fails is tried again after a pause; what goes on to fail, or
// cannot succeed, becomes a dead letter. When the cause is mended the dead letters are delivered once more.
//
//	go run ./examples/workers
package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/examples/internal/demo"
)

func main() { demo.Main(example) }

type payment struct {
	Number int    `json:"number"`
	Card   string `json:"card"`
}

// A bank is what the workers depend on.
type bank struct {
	mended atomic.Bool
}

func (b *bank) collect(_ context.Context, p payment, msg fastpubsub.Message) error {
	switch {
	case p.Card == "":
		return fastpubsub.Permanent(errors.New("no card")) // a dead letter at once
	case p.Number%5 == 0 && msg.DeliveryAttempts == 1:
		return errors.New("the bank did not answer") // again after the backoff
	case p.Number == 7 && !b.mended.Load():
		return errors.New("the bank does not know the card") // again, and a dead letter in the end
	}
	return nil // acked
}

func example(ctx context.Context, db demo.DB) error {
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		return err
	}
	if _, err := broker.CreateTopic(ctx, "payments"); err != nil {
		return err
	}
	_, err = broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "collect", TopicID: "payments",
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 2, BackoffMin: time.Second}})
	if err != nil {
		return err
	}
	msgs := []fastpubsub.NewMessage{fastpubsub.JSON(payment{Number: 20})} // without a card
	for n := range 20 {
		msgs = append(msgs, fastpubsub.JSON(payment{n, "4111"}))
	}
	if _, err := broker.Publish(ctx, "payments", msgs...); err != nil {
		return err
	}

	// A service gives Receive a context that ends with SIGTERM, and has nothing else to do.
	var bank bank
	working, stop := context.WithCancel(ctx)
	defer stop()
	g, working := errgroup.WithContext(working)
	g.Go(func() error {
		return broker.Receive(working, "collect", fastpubsub.Decode(bank.collect), fastpubsub.ReceiveOptions{Concurrency: 8})
	})
	g.Go(func() error {
		defer stop()
		if err := settled(working, broker, fastpubsub.Metrics{Acked: 19, DeadLetters: 2}); err != nil {
			return err
		}
		letters, err := broker.DeadLetters(working, "collect", fastpubsub.ListOptions{})
		if err != nil {
			return err
		}
		var ids []fastpubsub.ID
		for _, letter := range letters {
			fmt.Printf("  dead letter: %s, attempts %d: %s\n", letter.Payload, letter.DeliveryAttempts, letter.LastError)
			ids = append(ids, letter.ID)
		}

		fmt.Println("the bank is mended; the dead letters are delivered again")
		bank.mended.Store(true)
		if _, err := broker.Reprocess(working, "collect", ids); err != nil {
			return err
		}
		return settled(working, broker, fastpubsub.Metrics{Acked: 20, DeadLetters: 1})
	})
	return g.Wait()
}

// settled waits until no message waits or is with a worker, and compares the counts.
func settled(ctx context.Context, broker *fastpubsub.Broker, want fastpubsub.Metrics) error {
	for {
		got, err := broker.Metrics(ctx, "collect")
		if err != nil {
			return err
		}
		if got.Available+got.Delivered == 0 {
			fmt.Printf("collected %d, dead letters %d\n", got.Acked, got.DeadLetters)
			if got != want {
				return fmt.Errorf("the counts are %+v, not %+v", got, want)
			}
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}
