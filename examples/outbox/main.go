// Command outbox publishes in the application's own transactions: an order and its message are both there, or neither is. The
// log of messages is the outbox, there is no table to fill and no relay to run.
//
//	go run ./examples/outbox
package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/examples/internal/demo"
)

func main() { demo.Main(example) }

const tables = `
CREATE TABLE stock  (item text PRIMARY KEY, pieces int CHECK (pieces >= 0));
CREATE TABLE orders (customer text, item text, pieces int);
INSERT INTO stock VALUES ('mug', 5)`

type order struct {
	Customer string `json:"customer"`
	Item     string `json:"item"`
	Pieces   int    `json:"pieces"`
}

// place writes the order and publishes it. Any transaction of pgx's will do; InTx wakes consumers as soon as it has committed.
func place(ctx context.Context, broker *fastpubsub.Broker, o order) error {
	return broker.InTx(ctx, pgx.TxOptions{}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO orders VALUES ($1, $2, $3)`, o.Customer, o.Item, o.Pieces); err != nil {
			return err
		}
		if _, err := broker.PublishTx(ctx, tx, "orders", fastpubsub.JSON(o)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE stock SET pieces = pieces - $2 WHERE item = $1`, o.Item, o.Pieces)
		return err // an error rolls all of it back
	})
}

func example(ctx context.Context, db demo.DB) error {
	if _, err := db.Pool.Exec(ctx, tables); err != nil {
		return err
	}
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		return err
	}
	if _, err := broker.CreateTopic(ctx, "orders"); err != nil {
		return err
	}
	if _, err := broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "shipping", TopicID: "orders"}); err != nil {
		return err
	}

	if err := place(ctx, broker, order{"ann", "mug", 3}); err != nil {
		return err
	}
	fmt.Println("ann orders 3 of the 5 mugs: committed")

	err = place(ctx, broker, order{"bob", "mug", 3})
	refused, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return fmt.Errorf("bob's order of 3 mugs was not refused, but %w", err)
	}
	fmt.Println("bob orders 3 mugs: rolled back:", refused.Message)

	var orders int
	if err := db.Pool.QueryRow(ctx, `SELECT count(*) FROM orders`).Scan(&orders); err != nil {
		return err
	}
	msgs, err := broker.Consume(ctx, "shipping", fastpubsub.ConsumeOptions{Consumer: "worker-1"})
	if err != nil {
		return err
	}
	fmt.Println("rows in orders:", orders)
	for _, msg := range msgs {
		fmt.Printf("message: %s\n", msg.Payload)
	}
	if orders != 1 || len(msgs) != 1 {
		return fmt.Errorf("%d rows and %d messages, not one of each", orders, len(msgs))
	}
	return nil
}
