package migrations_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A program migrates at each start. Where there is nothing to do, nothing is done.
func ExampleUp() {
	ctx := context.Background()
	db, err := storetest.Open(ctx, "example")
	if err != nil {
		panic(err)
	}
	defer db.Close()

	// The schema is fastpubsub.DefaultSchema, unless the program's Config names another one.
	if err := migrations.Up(ctx, db.Pool.Config().ConnConfig, db.Schema); err != nil {
		panic(err)
	}
	status, err := migrations.Get(ctx, db.Pool, db.Schema)
	if err != nil {
		panic(err)
	}
	fmt.Println("up to date:", status.Current)
	// Output: up to date: true
}

// Where migrating is somebody else's, a program can look.
func ExampleGet() {
	ctx := context.Background()
	db, err := storetest.Open(ctx, "example")
	if err != nil {
		panic(err)
	}
	defer db.Close()

	for _, schema := range []string{db.Schema, "nobody_migrated_this"} {
		status, err := migrations.Get(ctx, db.Pool, schema)
		if err != nil {
			panic(err)
		}
		fmt.Println("newest version:", status.Version == status.Newest, "up to date:", status.Current)
	}
	// Output:
	// newest version: true up to date: true
	// newest version: false up to date: false
}

func ExampleCheckSchemaName() {
	fmt.Println(migrations.CheckSchemaName("pubsub"))
	fmt.Println(errors.Is(migrations.CheckSchemaName("PubSub"), migrations.ErrSchemaName))
	// Output:
	// <nil>
	// true
}
