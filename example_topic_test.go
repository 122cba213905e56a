package fastpubsub_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// A program that may not be the first creates what it needs, and does not mind that it is there.
func ExampleBroker_CreateTopic() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	for range 2 {
		topic, err := broker.CreateTopic(ctx, "payments")
		switch {
		case errors.Is(err, fastpubsub.ErrExists):
			fmt.Println("it was there")
		case err != nil:
			panic(err)
		default:
			fmt.Println("created", topic.ID)
		}
	}
	// Output:
	// created payments
	// it was there
}

func ExampleBroker_GetTopic() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	topic, err := broker.GetTopic(ctx, "orders")
	if err != nil {
		panic(err)
	}
	fmt.Println(topic.ID, topic.CreatedAt.Location())

	_, err = broker.GetTopic(ctx, "payments")
	fmt.Println(errors.Is(err, fastpubsub.ErrNotFound), err)
	// Output:
	// orders UTC
	// true get topic "payments": not found
}

// A list comes in pages.
func ExampleBroker_ListTopics() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	for _, id := range []string{"payments", "invoices"} {
		if _, err := broker.CreateTopic(ctx, id); err != nil {
			panic(err)
		}
	}

	page := fastpubsub.ListOptions{Limit: 2}
	for {
		topics, err := broker.ListTopics(ctx, page)
		if err != nil {
			panic(err)
		}
		if len(topics) == 0 {
			break
		}
		for _, topic := range topics {
			fmt.Println(topic.ID)
		}
		page.Offset += len(topics)
	}
	// Output:
	// invoices
	// orders
	// payments
}

// The subscriptions of a topic go with it.
func ExampleBroker_DeleteTopic() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	if err := broker.DeleteTopic(ctx, "orders"); err != nil {
		panic(err)
	}
	_, err := broker.GetSubscription(ctx, "emails")
	fmt.Println(err)
	// Output: get subscription "emails": not found
}

// A subscription says what it wants to get, and what happens to messages that fail. What it does not say is filled in.
func ExampleBroker_CreateSubscription() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	south, err := fastpubsub.ParseFilter([]byte(`{"country": ["BR", "AR"]}`))
	if err != nil {
		panic(err)
	}
	sub, err := broker.CreateSubscription(ctx, fastpubsub.Subscription{
		ID:                   "south",
		TopicID:              "orders",
		Filter:               south,
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 10, AckDeadline: 5 * time.Minute},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(sub.ID, sub.Filter, sub.MaxDeliveryAttempts, sub.BackoffMin, sub.BackoffMax, sub.AckDeadline)

	_, err = broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "a b", TopicID: "orders"})
	if invalid, ok := errors.AsType[*fastpubsub.InvalidError](err); ok {
		for _, problem := range invalid.Problems {
			fmt.Println("refused:", problem.Field)
		}
	}
	// Output:
	// south {"country":["BR","AR"]} 10 5s 5m0s 5m0s
	// refused: id
}

func ExampleBroker_GetSubscription() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	sub, err := broker.GetSubscription(ctx, "emails")
	if err != nil {
		panic(err)
	}
	fmt.Println(sub.ID, "of", sub.TopicID, "filter", sub.Filter)
	// Output: emails of orders filter null
}

func ExampleBroker_ListSubscriptions() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	subs, err := broker.ListSubscriptions(ctx, fastpubsub.ListOptions{Limit: 100})
	if err != nil {
		panic(err)
	}
	for _, sub := range subs {
		fmt.Println(sub.ID, "of", sub.TopicID)
	}
	// Output: emails of orders
}

// What it has not delivered goes with it.
func ExampleBroker_DeleteSubscription() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	fmt.Println(broker.DeleteSubscription(ctx, "emails"))
	fmt.Println(broker.DeleteSubscription(ctx, "emails"))
	// Output:
	// <nil>
	// delete subscription "emails": not found
}

// Each message is in one of the counts.
func ExampleBroker_Metrics() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	publishOrders(ctx, broker, `{"order": 1}`)
	killEmails(ctx, broker, "no address")
	publishOrders(ctx, broker, `{"order": 2}`)
	consumeEmails(ctx, broker)
	publishOrders(ctx, broker, `{"order": 3}`, `{"order": 4}`)

	m, err := broker.Metrics(ctx, "emails")
	if err != nil {
		panic(err)
	}
	fmt.Println("available:", m.Available, "delivered:", m.Delivered, "acked:", m.Acked, "dead letters:", m.DeadLetters)
	// Output: available: 2 delivered: 1 acked: 0 dead letters: 1
}
