package fastpubsubtest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/fastpubsubtest"
)

// run runs a test in an Example, which has no t. In a test of yours the function's body is all there is.
func run(test func(t testing.TB)) {
	if said := fake("Example", test); said != "" {
		fmt.Println("FAIL:", said)
	}
}

// Order is what the program under test publishes.
type Order struct {
	ID       int    `json:"id"`
	Customer string `json:"customer"`
}

// PlaceOrder is the program under test: it writes a row and publishes, in one transaction.
func PlaceOrder(ctx context.Context, tx pgx.Tx, broker *fastpubsub.Broker, order Order) error {
	if _, err := tx.Exec(ctx, "INSERT INTO orders VALUES ($1, $2)", order.ID, order.Customer); err != nil {
		return err
	}
	_, err := broker.PublishTx(ctx, tx, "orders", fastpubsub.JSON(order))
	return err
}

// A test of code that publishes in the caller's transaction. It looks before the commit, so it can roll back in the end.
func ExampleKit_RequirePublishedTx() {
	run(func(t testing.TB) {
		ctx := t.Context()
		kit := fastpubsubtest.New(t, fastpubsubtest.Options{})
		kit.Subscribe(t, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
		if _, err := kit.Pool.Exec(ctx, "CREATE TABLE orders (id int, customer text)"); err != nil {
			t.Fatal(err)
		}

		tx, err := kit.Pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx)
		if err := PlaceOrder(ctx, tx, kit.Broker, Order{ID: 7, Customer: "ann@example.com"}); err != nil {
			t.Fatal(err)
		}
		got := kit.RequirePublishedTx(t, tx, "orders", fastpubsubtest.Match{Payload: map[string]any{"id": 7}, Count: 1})
		fmt.Printf("%s\n", got[0].Payload)
		kit.RequireNotPublished(t, "orders", fastpubsubtest.Match{}) // for others
	})
	// Output:
	// {"id":7,"customer":"ann@example.com"}
}

// What a handler makes of one message, and what becomes of that.
func ExampleKit_Handle() {
	handle := fastpubsub.Decode(func(ctx context.Context, order Order, msg fastpubsub.Message) error {
		if order.Customer == "" {
			return fastpubsub.Permanent(errors.New("nobody to mail to"))
		}
		return errors.New("the mail server is away")
	})
	run(func(t testing.TB) {
		kit := fastpubsubtest.New(t, fastpubsubtest.Options{})

		outcome := kit.Handle(t, handle, fastpubsub.JSON(Order{ID: 7, Customer: "ann@example.com"}), fastpubsubtest.HandleOptions{Attempt: 3})
		fmt.Println(outcome.State, outcome.Delay, outcome.LastError)

		outcome = kit.Handle(t, handle, fastpubsub.JSON(Order{ID: 8}), fastpubsubtest.HandleOptions{})
		fmt.Println(outcome.State, outcome.Delay, outcome.LastError)
	})
	// Output:
	// nacked 20s the mail server is away
	// dead-lettered 0s nobody to mail to
}

// A handler that is idempotent: the first ack of each message is lost, and still each order has one invoice.
func ExampleKit_Drain() {
	run(func(t testing.TB) {
		ctx := t.Context()
		kit := fastpubsubtest.New(t, fastpubsubtest.Options{})
		kit.Subscribe(t, fastpubsub.Subscription{ID: "billing", TopicID: "orders"})
		if _, err := kit.Pool.Exec(ctx, "CREATE TABLE invoices (order_id int PRIMARY KEY)"); err != nil {
			t.Fatal(err)
		}
		handle := fastpubsub.Decode(func(ctx context.Context, order Order, msg fastpubsub.Message) error {
			_, err := kit.Pool.Exec(ctx, "INSERT INTO invoices VALUES ($1) ON CONFLICT DO NOTHING", order.ID)
			return err
		})

		if _, err := kit.Broker.Publish(ctx, "orders", fastpubsub.JSON(Order{ID: 7}), fastpubsub.JSON(Order{ID: 8})); err != nil {
			t.Fatal(err)
		}
		drained := kit.Drain(t, "billing", handle, fastpubsubtest.DrainOptions{
			Fault: fastpubsubtest.FirstDelivery(fastpubsubtest.LostAck),
		})
		fmt.Println("calls:", len(drained.Calls), "acked:", drained.Acked, "clock:", drained.Advanced)

		var invoices int
		if err := kit.Pool.QueryRow(ctx, "SELECT count(*) FROM invoices").Scan(&invoices); err != nil {
			t.Fatal(err)
		}
		fmt.Println("invoices:", invoices)
	})
	// Output:
	// calls: 4 acked: 2 clock: 1m0s
	// invoices: 2
}

// Nothing waits for real: the clock is the test's.
func ExampleKit_Advance() {
	run(func(t testing.TB) {
		ctx := t.Context()
		kit := fastpubsubtest.New(t, fastpubsubtest.Options{})
		kit.Subscribe(t, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
		if _, err := kit.Broker.Publish(ctx, "orders", fastpubsub.JSON(Order{ID: 7})); err != nil {
			t.Fatal(err)
		}
		consume := func() {
			msgs, err := kit.Broker.Consume(ctx, "emails", fastpubsub.ConsumeOptions{Consumer: "test"})
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println("messages:", len(msgs))
		}
		consume() // and never acks
		consume()
		kit.Advance(t, time.Minute) // the ack deadline
		consume()
	})
	// Output:
	// messages: 1
	// messages: 0
	// messages: 1
}

// A publisher whose commit happened, but who was not told, and tries again.
func ExampleKit_LoseCommit() {
	run(func(t testing.TB) {
		ctx := t.Context()
		kit := fastpubsubtest.New(t, fastpubsubtest.Options{})
		kit.Subscribe(t, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
		if _, err := kit.Pool.Exec(ctx, "CREATE TABLE orders (id int PRIMARY KEY, customer text)"); err != nil {
			t.Fatal(err)
		}

		kit.LoseCommit(t)
		for attempt := range 2 {
			err := pgx.BeginFunc(ctx, kit.Pool, func(tx pgx.Tx) error { return PlaceOrder(ctx, tx, kit.Broker, Order{ID: 7}) })
			fmt.Println("attempt", attempt+1, "failed:", err != nil)
		}
		// The second found the order there, and its message was rolled back with it.
		fmt.Println("messages:", len(kit.RequirePublished(t, "orders", fastpubsubtest.Match{})))
	})
	// Output:
	// attempt 1 failed: true
	// attempt 2 failed: true
	// messages: 1
}
