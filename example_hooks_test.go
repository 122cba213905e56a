package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// printHooks say what is done, and carry the name of whoever publishes to whoever handles.
type printHooks struct{}

type userKey struct{}

func (printHooks) Start(ctx context.Context, op *fastpubsub.Operation) context.Context {
	switch op.Kind {
	case fastpubsub.OpPublish:
		if user, ok := ctx.Value(userKey{}).(string); ok {
			op.Attributes = map[string]string{"user": user}
		}
	case fastpubsub.OpHandle:
		ctx = context.WithValue(ctx, userKey{}, op.Messages[0].Attributes["user"])
	}
	return ctx
}

func (printHooks) End(ctx context.Context, op *fastpubsub.Operation) {
	switch op.Kind {
	case fastpubsub.OpPublish:
		fmt.Println("published to", op.TopicID, "by", ctx.Value(userKey{}), "messages:", op.Count)
	case fastpubsub.OpHandle:
		fmt.Println("handled from", op.SubscriptionID, "outcome:", op.Outcome, "error:", op.Err)
	}
}

// Hooks see what a broker does, and their contexts reach the handlers.
func ExampleHooks() {
	ctx := context.Background()
	_, db, err := exampleBroker(ctx)
	if err != nil {
		panic(err)
	}
	defer db.Close()
	if err := hooked(ctx, db); err != nil {
		panic(err)
	}
	// Output:
	// published to orders by ann messages: 2
	// a mail for ann
	// handled from emails outcome: acked error: <nil>
	// a mail for ann
	// handled from emails outcome: dead_letter error: no such address
}

func hooked(ctx context.Context, db *storetest.DB) error {
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Hooks: printHooks{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	_, err = broker.Publish(context.WithValue(ctx, userKey{}, "ann"), "orders",
		fastpubsub.NewMessage{Payload: []byte(`{"n":1}`)}, fastpubsub.NewMessage{Payload: []byte(`{"n":2}`)})
	if err != nil {
		return err
	}
	receiving, cancel := context.WithCancel(ctx)
	defer cancel()
	return broker.Receive(receiving, "emails", fastpubsub.Decode(func(ctx context.Context, v struct{ N int }, _ fastpubsub.Message) error {
		fmt.Println("a mail for", ctx.Value(userKey{}))
		if v.N == 2 {
			cancel() // the end of this example
			return fastpubsub.Permanent(errors.New("no such address"))
		}
		return nil
	}), fastpubsub.ReceiveOptions{Concurrency: 1})
}
