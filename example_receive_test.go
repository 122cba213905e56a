package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// exampleBroker is a broker on a schema of its own, with a topic "orders" and a subscription "emails".
func exampleBroker(ctx context.Context) (*fastpubsub.Broker, *storetest.DB, error) {
	db, err := storetest.Open(ctx, "example")
	if err != nil {
		return nil, nil, err
	}
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	_, err = broker.CreateTopic(ctx, "orders")
	if err == nil {
		_, err = broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
	}
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return broker, db, nil
}

// A worker that mails customers. What it says about each message decides what becomes of that.
func ExampleBroker_Receive() {
	ctx := context.Background()
	broker, db, err := exampleBroker(ctx)
	if err != nil {
		panic(err)
	}
	defer db.Close()

	type Order struct{ Customer string }
	_, err = broker.Publish(ctx, "orders",
		fastpubsub.JSON(Order{"ann@example.com"}),
		fastpubsub.JSON(Order{""}),
		fastpubsub.JSON(Order{"bob@example.com"}))
	if err != nil {
		panic(err)
	}

	ctx, cancel := context.WithCancel(ctx) // of a service, that of signal.NotifyContext
	defer cancel()
	handle := fastpubsub.Decode(func(ctx context.Context, order Order, msg fastpubsub.Message) error {
		if order.Customer == "" {
			return fastpubsub.Permanent(errors.New("nobody to mail to")) // another attempt would not help
		}
		fmt.Println("mail to", order.Customer)
		if order.Customer == "bob@example.com" {
			cancel() // the end of this example
		}
		return nil // acked
	})
	if err := broker.Receive(ctx, "emails", handle, fastpubsub.ReceiveOptions{Concurrency: 1}); err != nil {
		panic(err)
	}

	letters, err := broker.DeadLetters(context.Background(), "emails", fastpubsub.ListOptions{})
	if err != nil {
		panic(err)
	}
	for _, letter := range letters {
		fmt.Println("dead letter:", letter.LastError)
	}
	// Output:
	// mail to ann@example.com
	// mail to bob@example.com
	// dead letter: nobody to mail to
}

// A loop acks what it goes on from. What Settle says about a message is done instead.
func ExampleBroker_Messages() {
	ctx := context.Background()
	broker, db, err := exampleBroker(ctx)
	if err != nil {
		panic(err)
	}
	defer db.Close()
	_, err = broker.Publish(ctx, "orders",
		fastpubsub.NewMessage{Payload: []byte(`{"customer":"ann"}`)},
		fastpubsub.NewMessage{Payload: []byte(`{}`)},
		fastpubsub.NewMessage{Payload: []byte(`{"customer":"bob"}`)})
	if err != nil {
		panic(err)
	}

	ctx, cancel := context.WithCancel(ctx) // of a service, that of signal.NotifyContext
	defer cancel()
	n := 0
	for msg, err := range broker.Messages(ctx, "emails", fastpubsub.ReceiveOptions{}) {
		if err != nil {
			panic(err)
		}
		fmt.Println(string(msg.Payload))
		if string(msg.Payload) == "{}" {
			msg.Settle(fastpubsub.Permanent(errors.New("no customer")))
		}
		if n++; n == 3 {
			cancel() // the end of this example, after this body's end
		}
	}
	m, err := broker.Metrics(context.Background(), "emails")
	if err != nil {
		panic(err)
	}
	fmt.Println("acked:", m.Acked, "dead letters:", m.DeadLetters)
	// Output:
	// {"customer":"ann"}
	// {}
	// {"customer":"bob"}
	// acked: 2 dead letters: 1
}

// The row and the ack are committed together: whatever crashes, each order has one row.
func ExampleBroker_ReceiveTx() {
	ctx := context.Background()
	broker, db, err := exampleBroker(ctx)
	if err != nil {
		panic(err)
	}
	defer db.Close()
	invoices := pgx.Identifier{db.Schema, "invoices"}.Sanitize()
	if _, err := db.Pool.Exec(ctx, "CREATE TABLE "+invoices+" (customer text)"); err != nil {
		panic(err)
	}

	type Order struct{ Customer string }
	if _, err := broker.Publish(ctx, "orders", fastpubsub.JSON(Order{"ann@example.com"})); err != nil {
		panic(err)
	}

	receiving, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := false
	handle := fastpubsub.DecodeTx(func(ctx context.Context, tx pgx.Tx, order Order, msg fastpubsub.Message) error {
		if _, err := tx.Exec(ctx, "INSERT INTO "+invoices+" VALUES ($1)", order.Customer); err != nil {
			return err
		}
		if !failed {
			failed = true
			return fastpubsub.Snooze(0) // nothing that it wrote remains, and the message comes again
		}
		cancel() // the end of this example
		return nil
	})
	if err := broker.ReceiveTx(receiving, "emails", handle, fastpubsub.ReceiveOptions{Concurrency: 1}); err != nil {
		panic(err)
	}

	var rows int
	if err := db.Pool.QueryRow(ctx, "SELECT count(*) FROM "+invoices).Scan(&rows); err != nil {
		panic(err)
	}
	fmt.Println("invoices:", rows)
	// Output:
	// invoices: 1
}
