package fastpubsub_test

import (
	"context"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// What examples have in common is here, so that each shows its own subject. An example has no test to fail: it panics.

// openExample is exampleBroker with a context.
func openExample() (context.Context, *fastpubsub.Broker, *storetest.DB) {
	ctx := context.Background()
	broker, db, err := exampleBroker(ctx)
	if err != nil {
		panic(err)
	}
	return ctx, broker, db
}

func closeExample(db *storetest.DB) {
	if err := db.Close(); err != nil {
		panic(err)
	}
}

// publishOrders publishes to the topic "orders".
func publishOrders(ctx context.Context, broker *fastpubsub.Broker, payloads ...string) {
	for _, payload := range payloads {
		if _, err := broker.Publish(ctx, "orders", fastpubsub.NewMessage{Payload: []byte(payload)}); err != nil {
			panic(err)
		}
	}
}

// consumeEmails takes what the subscription "emails" has now.
func consumeEmails(ctx context.Context, broker *fastpubsub.Broker) []fastpubsub.Message {
	msgs, err := broker.Consume(ctx, "emails", fastpubsub.ConsumeOptions{Consumer: "worker-1"})
	if err != nil {
		panic(err)
	}
	return msgs
}

// killEmails makes all that the subscription "emails" has dead letters.
func killEmails(ctx context.Context, broker *fastpubsub.Broker, reason string) {
	for _, msg := range consumeEmails(ctx, broker) {
		options := fastpubsub.NackOptions{DeadLetter: true, Error: reason}
		if _, err := broker.Nack(ctx, "emails", []fastpubsub.Delivery{msg.Delivery}, options); err != nil {
			panic(err)
		}
	}
}

// importShop stores a client, whose secret is "password".
func importShop(ctx context.Context, broker *fastpubsub.Broker) uuid.UUID {
	shop := fastpubsub.Client{ID: uuid.New(), Name: "Shop", Scopes: fastpubsub.Scopes{"topics:publish:orders"}, Active: true}
	if err := broker.ImportClient(ctx, shop, cheapHash); err != nil {
		panic(err)
	}
	return shop.ID
}
