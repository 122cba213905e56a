package fastpubsub_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
)

// Payloads are what encoding/json makes of a value, or JSON that is there already. All are published, or none.
func ExampleBroker_Publish() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	type Order struct{ Customer string }
	ids, err := broker.Publish(ctx, "orders",
		fastpubsub.JSON(Order{"ann@example.com"}),
		fastpubsub.NewMessage{
			Payload:    []byte(`{"Customer": "bob@example.com"}`),
			Attributes: map[string]string{"trace": "4bf92f35"},
		})
	if err != nil {
		panic(err)
	}
	fmt.Println("published", len(ids))
	for _, msg := range consumeEmails(ctx, broker) {
		fmt.Println(string(msg.Payload), msg.Attributes)
	}

	_, err = broker.Publish(ctx, "orders", fastpubsub.JSON("not an object"))
	fmt.Println(errors.Is(err, fastpubsub.ErrInvalid))
	// Output:
	// published 2
	// {"Customer":"ann@example.com"} map[]
	// {"Customer": "bob@example.com"} map[trace:4bf92f35]
	// true
}

// A message is published when the transaction commits that writes the row which it is about.
func ExampleBroker_PublishTx() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	tx, err := db.Pool.Begin(ctx)
	if err != nil {
		panic(err)
	}
	defer tx.Rollback(ctx)
	// ... write the order with tx.
	if _, err := broker.PublishTx(ctx, tx, "orders", fastpubsub.JSON(map[string]any{"order": 1})); err != nil {
		panic(err)
	}
	fmt.Println("before the commit:", len(consumeEmails(ctx, broker)))
	if err := tx.Commit(ctx); err != nil {
		panic(err)
	}
	fmt.Println("after the commit:", len(consumeEmails(ctx, broker)))
	// Output:
	// before the commit: 0
	// after the commit: 1
}

// An error rolls back, and nothing was published.
func ExampleBroker_InTx() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	place := func(order int) error {
		return broker.InTx(ctx, pgx.TxOptions{}, func(tx pgx.Tx) error {
			if _, err := broker.PublishTx(ctx, tx, "orders", fastpubsub.JSON(map[string]any{"order": order})); err != nil {
				return err
			}
			if order == 2 {
				return errors.New("out of stock")
			}
			return nil
		})
	}
	fmt.Println(place(1))
	fmt.Println(place(2))
	for _, msg := range consumeEmails(ctx, broker) {
		fmt.Println(string(msg.Payload))
	}
	// Output:
	// <nil>
	// out of stock
	// {"order":1}
}

// A loop of one's own; Receive is one that does more.
func ExampleBroker_Consume() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`, `{"order": 2}`, `{"order": 3}`)

	options := fastpubsub.ConsumeOptions{Consumer: "worker-1", Max: 2, Wait: 100 * time.Millisecond} // Wait is longer in a service
	for {
		msgs, err := broker.Consume(ctx, "emails", options)
		if err != nil {
			panic(err)
		}
		if len(msgs) == 0 {
			fmt.Println("nothing came")
			break
		}
		var ids []fastpubsub.ID
		for _, msg := range msgs {
			fmt.Println(string(msg.Payload), "attempt", msg.DeliveryAttempts)
			ids = append(ids, msg.ID)
		}
		if _, err := broker.Ack(ctx, "emails", ids); err != nil {
			panic(err)
		}
	}
	// Output:
	// {"order": 1} attempt 1
	// {"order": 2} attempt 1
	// {"order": 3} attempt 1
	// nothing came
}

// A message is acked once.
func ExampleBroker_Ack() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)
	msgs := consumeEmails(ctx, broker)

	for range 2 {
		n, err := broker.Ack(ctx, "emails", []fastpubsub.ID{msgs[0].ID})
		if err != nil {
			panic(err)
		}
		fmt.Println("acked", n)
	}
	// Output:
	// acked 1
	// acked 0
}

// What a transaction does about a message happens once, if it commits only where its ack counts.
func ExampleBroker_AckTx() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)
	msgs := consumeEmails(ctx, broker)

	errNotOurs := errors.New("somebody else has done it")
	invoice := func() error {
		return pgx.BeginFunc(ctx, db.Pool, func(tx pgx.Tx) error {
			// ... write the invoice with tx.
			n, err := broker.AckTx(ctx, tx, "emails", []fastpubsub.ID{msgs[0].ID})
			if err == nil && n != 1 {
				err = errNotOurs
			}
			return err
		})
	}
	fmt.Println(invoice())
	fmt.Println(invoice()) // by another consumer, after a redelivery
	// Output:
	// <nil>
	// somebody else has done it
}

// What failed comes again, after the subscription's backoff or when the options say.
func ExampleBroker_Nack() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)

	msg := consumeEmails(ctx, broker)[0]
	options := fastpubsub.NackOptions{Immediate: true, Error: "the mail server did not answer"}
	n, err := broker.Nack(ctx, "emails", []fastpubsub.Delivery{msg.Delivery}, options)
	if err != nil {
		panic(err)
	}
	fmt.Println("given back", n)
	msg = consumeEmails(ctx, broker)[0]
	fmt.Println("attempt", msg.DeliveryAttempts)
	// Output:
	// given back 1
	// attempt 2
}

// A failure is written down and the message given back, or neither.
func ExampleBroker_NackTx() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)
	msg := consumeEmails(ctx, broker)[0]

	err := pgx.BeginFunc(ctx, db.Pool, func(tx pgx.Tx) error {
		// ... write with tx that this address bounces.
		options := fastpubsub.NackOptions{DeadLetter: true, Error: "the address bounces"}
		n, err := broker.NackTx(ctx, tx, "emails", []fastpubsub.Delivery{msg.Delivery}, options)
		fmt.Println("given back", n)
		return err
	})
	if err != nil {
		panic(err)
	}
	m, err := broker.Metrics(ctx, "emails")
	if err != nil {
		panic(err)
	}
	fmt.Println("dead letters", m.DeadLetters)
	// Output:
	// given back 1
	// dead letters 1
}

// Work that takes longer than the ack deadline asks for more time. Zero gives a message back, and is not an attempt.
func ExampleBroker_Extend() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)

	msg := consumeEmails(ctx, broker)[0]
	n, err := broker.Extend(ctx, "emails", []fastpubsub.Delivery{msg.Delivery}, 10*time.Minute)
	if err != nil {
		panic(err)
	}
	fmt.Println("extended", n)

	if _, err = broker.Extend(ctx, "emails", []fastpubsub.Delivery{msg.Delivery}, 0); err != nil {
		panic(err)
	}
	msg = consumeEmails(ctx, broker)[0]
	fmt.Println("attempt", msg.DeliveryAttempts)
	// Output:
	// extended 1
	// attempt 1
}
