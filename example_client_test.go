package fastpubsub_test

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
)

// The secret is known now and never again. It has to be converted to be seen.
func ExampleBroker_CreateClient() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	client, secret, err := broker.CreateClient(ctx, fastpubsub.NewClient{
		Name:   "Shop",
		Scopes: fastpubsub.Scopes{"topics:publish:orders"},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(client.Name, client.Scopes, client.Active)
	fmt.Println(secret, len(string(secret)))
	// Output:
	// Shop topics:publish:orders true
	// [secret] 32
}

// A client of another installation keeps its id and its secret.
func ExampleBroker_ImportClient() {
	ctx, broker, db := openExample()
	defer closeExample(db)

	shop := fastpubsub.Client{
		ID:     uuid.MustParse("550e8400-e29b-41d4-a716-446655440000"),
		Name:   "Shop",
		Scopes: fastpubsub.Scopes{"topics:publish:orders"},
		Active: true,
	}
	hash := fastpubsub.Secret("$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4")
	if err := broker.ImportClient(ctx, shop, hash); err != nil {
		panic(err)
	}
	err := broker.ImportClient(ctx, shop, hash)
	fmt.Println(errors.Is(err, fastpubsub.ErrExists))
	// Output: true
}

func ExampleBroker_GetClient() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	id := importShop(ctx, broker)

	client, err := broker.GetClient(ctx, id)
	if err != nil {
		panic(err)
	}
	fmt.Println(client.Name, client.Scopes)
	// Output: Shop topics:publish:orders
}

func ExampleBroker_ListClients() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	importShop(ctx, broker)

	clients, err := broker.ListClients(ctx, fastpubsub.ListOptions{Limit: 100})
	if err != nil {
		panic(err)
	}
	for _, client := range clients {
		fmt.Println(client.Name, client.Scopes)
	}
	// Output: Shop topics:publish:orders
}

// The name and the scopes are always set; Active only where it is given. Each update revokes all tokens of the client.
func ExampleBroker_UpdateClient() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	id := importShop(ctx, broker)

	client, err := broker.UpdateClient(ctx, id, fastpubsub.ClientUpdate{
		Name:   "Shop, closed",
		Scopes: fastpubsub.Scopes{"topics:publish:orders"},
		Active: new(false),
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(client.Name, client.Active, client.TokenVersion)
	// Output: Shop, closed false 2
}

func ExampleBroker_DeleteClient() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	id := importShop(ctx, broker)

	if err := broker.DeleteClient(ctx, id); err != nil {
		panic(err)
	}
	_, err := broker.GetClient(ctx, id)
	fmt.Println(errors.Is(err, fastpubsub.ErrNotFound))
	// Output: true
}

// A broker needs a key for tokens, the same in all processes.
func ExampleBroker_IssueToken() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	id := importShop(ctx, broker)

	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{
		Schema: db.Schema,
		Tokens: fastpubsub.TokenSettings{Key: "0123456789abcdef"}, // from your settings; NewSecret makes one
	})
	if err != nil {
		panic(err)
	}
	token, err := broker.IssueToken(ctx, id.String(), "password", nil)
	if err != nil {
		panic(err)
	}
	fmt.Println("good for", token.Scopes, "and", token.Lifetime)

	_, err = broker.IssueToken(ctx, id.String(), "pass-word", nil)
	fmt.Println(errors.Is(err, fastpubsub.ErrCredentials))
	_, err = broker.IssueToken(ctx, id.String(), "password", fastpubsub.Scopes{"topics:delete"})
	fmt.Println(errors.Is(err, fastpubsub.ErrScope))
	// Output:
	// good for topics:publish:orders and 30m0s
	// true
	// true
}

// A program with an API of its own asks who is calling, and what they may do.
func ExampleBroker_CheckToken() {
	ctx, broker, db := openExample()
	defer closeExample(db)
	id := importShop(ctx, broker)

	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{
		Schema: db.Schema,
		Tokens: fastpubsub.TokenSettings{Key: "0123456789abcdef"},
	})
	if err != nil {
		panic(err)
	}
	token, err := broker.IssueToken(ctx, id.String(), "password", nil)
	if err != nil {
		panic(err)
	}
	caller, err := broker.CheckToken(ctx, token.AccessToken)
	if err != nil {
		panic(err)
	}
	fmt.Println(caller.ClientID == id, caller.Scopes.Has("topics:publish:orders"), caller.Scopes.Has("topics:delete:orders"))

	if err := broker.DeleteClient(ctx, id); err != nil {
		panic(err)
	}
	_, err = broker.CheckToken(ctx, token.AccessToken)
	fmt.Println(errors.Is(err, fastpubsub.ErrToken))
	// Output:
	// true true false
	// true
}
