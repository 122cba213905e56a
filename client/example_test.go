package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/client"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// exampleServer is a server with a topic "orders" and a subscription "emails". What it returns ends it.
func exampleServer(ctx context.Context) (url string, id string, secret fastpubsub.Secret, end func()) {
	db, err := storetest.Open(ctx, "example")
	if err != nil {
		panic(err)
	}
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{
		Schema: db.Schema, Logger: silent, Tokens: fastpubsub.TokenSettings{Key: fastpubsub.NewSecret()}})
	if err != nil {
		panic(err)
	}
	_, topicErr := broker.CreateTopic(ctx, "orders")
	_, subErr := broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
	created, secret, err := broker.CreateClient(ctx, fastpubsub.NewClient{Name: "shop", Scopes: fastpubsub.Scopes{"*"}})
	if err := errors.Join(topicErr, subErr, err); err != nil {
		panic(err)
	}
	server := httptest.NewServer(httpapi.New(broker, httpapi.Config{Logger: silent, Authenticate: true}))
	return server.URL, created.ID.String(), secret, func() {
		server.Close()
		db.Close()
	}
}

func ExampleClient_Publish() {
	ctx := context.Background()
	url, id, secret, end := exampleServer(ctx)
	defer end()

	c, err := client.New(url, client.Options{ClientID: id, ClientSecret: secret})
	if err != nil {
		panic(err)
	}
	ids, err := c.Publish(ctx, "orders", fastpubsub.JSON(map[string]int{"order": 1}), fastpubsub.JSON(map[string]int{"order": 2}))
	if err != nil {
		panic(err)
	}
	fmt.Println("published:", len(ids))

	_, err = c.Publish(ctx, "order", fastpubsub.JSON(map[string]int{"order": 3}))
	fmt.Println("not found:", errors.Is(err, fastpubsub.ErrNotFound))
	// Output:
	// published: 2
	// not found: true
}

// A worker without a database.
func ExampleClient_Receive() {
	ctx := context.Background()
	url, id, secret, end := exampleServer(ctx)
	defer end()

	c, err := client.New(url, client.Options{ClientID: id, ClientSecret: secret})
	if err != nil {
		panic(err)
	}
	type Order struct{ Customer string }
	if _, err := c.Publish(ctx, "orders", fastpubsub.JSON(Order{"ann@example.com"}), fastpubsub.JSON(Order{"bob@example.com"})); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(ctx) // of a service, that of signal.NotifyContext
	defer cancel()
	handle := fastpubsub.Decode(func(ctx context.Context, order Order, msg fastpubsub.Message) error {
		fmt.Println("mail to", order.Customer)
		if order.Customer == "bob@example.com" {
			cancel() // the end of this example
		}
		return nil // acked
	})
	if err := c.Receive(ctx, "emails", handle, fastpubsub.ReceiveOptions{Concurrency: 1}); err != nil {
		panic(err)
	}
	// Output:
	// mail to ann@example.com
	// mail to bob@example.com
}

func ExampleClient_Messages() {
	ctx := context.Background()
	url, id, secret, end := exampleServer(ctx)
	defer end()

	c, err := client.New(url, client.Options{ClientID: id, ClientSecret: secret})
	if err != nil {
		panic(err)
	}
	if _, err := c.Publish(ctx, "orders", fastpubsub.JSON(map[string]int{"order": 1})); err != nil {
		panic(err)
	}
	for msg, err := range c.Messages(ctx, "emails", fastpubsub.ReceiveOptions{}) {
		if err != nil {
			panic(err)
		}
		fmt.Println(string(msg.Payload))
		msg.Settle(nil) // acked, though the loop does not go on
		break
	}
	m, err := c.Metrics(ctx, "emails")
	if err != nil {
		panic(err)
	}
	fmt.Println("acked:", m.Acked)
	// Output:
	// {"order":1}
	// acked: 1
}
