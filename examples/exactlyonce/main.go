// Command exactlyonce books deposits with ReceiveTx: the booking and the ack are one transaction. A worker whose connection
// breaks between the two has done neither, and the message comes again. Each deposit is booked once.
//
//	go run ./examples/exactlyonce
package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/examples/internal/demo"
)

func main() { demo.Main(example) }

// Nothing in the table keeps a deposit from being booked twice: if that happens, it shows.
const tables = `
CREATE TABLE accounts (owner text PRIMARY KEY, balance int);
INSERT INTO accounts VALUES ('ann', 0)`

type deposit struct {
	Owner  string `json:"owner"`
	Amount int    `json:"amount"`
}

func example(ctx context.Context, db demo.DB) error {
	if _, err := db.Pool.Exec(ctx, tables); err != nil {
		return err
	}
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		return err
	}
	if _, err := broker.CreateTopic(ctx, "deposits"); err != nil {
		return err
	}
	_, err = broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "booking", TopicID: "deposits",
		SubscriptionSettings: fastpubsub.SubscriptionSettings{BackoffMin: time.Second}})
	if err != nil {
		return err
	}
	for _, amount := range []int{1, 10, 100} {
		if _, err := broker.Publish(ctx, "deposits", fastpubsub.JSON(deposit{"ann", amount})); err != nil {
			return err
		}
	}

	receiving, stop := context.WithCancel(ctx)
	defer stop()
	var calls, returned atomic.Int32
	book := func(ctx context.Context, tx pgx.Tx, d deposit, msg fastpubsub.Message) error {
		calls.Add(1)
		_, err := tx.Exec(ctx, `UPDATE accounts SET balance = balance + $2 WHERE owner = $1`, d.Owner, d.Amount)
		if err != nil {
			return err
		}
		if d.Amount == 10 && msg.DeliveryAttempts == 1 {
			fmt.Printf("deposit of %d: written, and the connection breaks before the commit\n", d.Amount)
			_, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
			return err
		}
		fmt.Printf("deposit of %d: written, attempt %d\n", d.Amount, msg.DeliveryAttempts)
		if returned.Add(1) == 3 {
			stop() // the end of this example; the handler finishes, and its transaction commits
		}
		return nil
	}
	if err := broker.ReceiveTx(receiving, "booking", fastpubsub.DecodeTx(book), fastpubsub.ReceiveOptions{}); err != nil {
		return err
	}

	var balance int
	if err := db.Pool.QueryRow(ctx, `SELECT balance FROM accounts`).Scan(&balance); err != nil {
		return err
	}
	fmt.Printf("3 deposits of 111 in all, handled %d times, balance %d\n", calls.Load(), balance)
	if calls.Load() != 4 || balance != 111 {
		return fmt.Errorf("%d calls and a balance of %d, not 4 and 111", calls.Load(), balance)
	}
	return nil
}
