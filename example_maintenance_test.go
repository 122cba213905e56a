package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/migrations"
)

// All that it takes to embed fastpubsub.
func ExampleNew() {
	ctx, _, db := openExample()
	defer closeExample(db)

	pool, err := pgxpool.New(ctx, db.URL) // or the one that the program has
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool.Config().ConnConfig, db.Schema); err != nil {
		panic(err)
	}
	broker, err := fastpubsub.New(pool, fastpubsub.Config{
		Schema:               db.Schema, // left out it is fastpubsub.DefaultSchema
		SubscriptionDefaults: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 3, AckDeadline: 5 * time.Minute},
	})
	if err != nil {
		panic(err)
	}
	sub, err := broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "invoices", TopicID: "orders"})
	if err != nil {
		panic(err)
	}
	fmt.Println(sub.MaxDeliveryAttempts, sub.BackoffMin, sub.AckDeadline)
	// Output: 3 5s 5m0s
}

// For a health check.
func ExampleBroker_Check() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	fmt.Println(broker.Check(ctx))

	elsewhere, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: "nobody_migrated_this"})
	if err != nil {
		panic(err)
	}
	fmt.Println(errors.Is(elsewhere.Check(ctx), fastpubsub.ErrSchemaOutdated))
	// Output:
	// <nil>
	// true
}

// A service calls Run once, in a goroutine of its own, until it ends.
func ExampleBroker_Run() {
	ctx, _, db := openExample()
	defer closeExample(db)

	running, stop := context.WithCancel(ctx) // of a service, that of signal.NotifyContext
	defer stop()
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{
		Schema: db.Schema,
		OnMaintenance: func(pass fastpubsub.MaintenancePass) {
			fmt.Println("a pass of maintenance, error:", pass.Err)
			stop() // the end of this example
		},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println("ended, error:", broker.Run(running))
	// Output:
	// a pass of maintenance, error: <nil>
	// ended, error: <nil>
}

// Where notifications cannot arrive, through some poolers for example, consumers poll.
func ExampleBroker_Listening() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	fmt.Println("listening:", broker.Listening())

	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- broker.Run(running) }()
	for !broker.Listening() {
		time.Sleep(time.Millisecond) // it connects
	}
	fmt.Println("listening:", broker.Listening())
	stop()
	if err := <-ended; err != nil {
		panic(err)
	}
	// Output:
	// listening: false
	// listening: true
}

// For cron, where nobody calls Run. It ends leases of subscriptions from which nobody consumes any more.
func ExampleBroker_CleanupStuck() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)
	options := fastpubsub.ConsumeOptions{Consumer: "dies", AckDeadline: time.Second}
	if _, err := broker.Consume(ctx, "emails", options); err != nil {
		panic(err)
	}

	for {
		stuck, err := broker.CleanupStuck(ctx)
		if err != nil {
			panic(err)
		}
		if stuck.Released > 0 {
			fmt.Println("released", stuck.Released, "dead letters", stuck.DeadLetters)
			break
		}
		time.Sleep(50 * time.Millisecond) // cron comes every minute
	}
	// Output: released 1 dead letters 0
}

// For cron, where nobody calls Run. It empties the tables of messages that all subscriptions have acked.
func ExampleBroker_CleanupAcked() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)
	if _, err := broker.Ack(ctx, "emails", idsOf(consumeEmails(ctx, broker))); err != nil {
		panic(err)
	}

	freed := fastpubsub.Freed{}
	for freed.Slots == 0 { // what is left at this call is emptied at the next
		var err error
		if freed, err = broker.CleanupAcked(ctx, 0); err != nil { // an hour, by cron
			panic(err)
		}
	}
	fmt.Println("space came back:", freed.Bytes > 0)
	// Output: space came back: true
}

// After a dump was restored, the first thing to do.
func ExampleBroker_Repair() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`, `{"order": 2}`)
	// What a restored dump looks like.
	if _, err := db.Pool.Exec(ctx, db.SQL(`UPDATE {schema}.origin SET messages = messages`)); err != nil {
		panic(err)
	}
	fmt.Println(errors.Is(broker.Check(ctx), fastpubsub.ErrRestored))

	repaired, err := broker.Repair(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Println("restored:", repaired.Restored, "messages:", repaired.Messages)
	fmt.Println(broker.Check(ctx), len(consumeEmails(ctx, broker)))
	// Output:
	// true
	// restored: true messages: 2
	// <nil> 2
}
