// Command embedded is a shop that publishes its orders, and mails its customers, with fastpubsub inside: no broker
// beside it, and no message that disagrees with the tables.
//
// It runs by itself, on a throw-away PostgreSQL, or in a schema of its own in the database that FASTPUBSUB_DATABASE_URL
// names. It checks what it says, and ends with exit code 1 if any of it is not true.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "embedded: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, w io.Writer) (err error) {
	url := os.Getenv("FASTPUBSUB_DATABASE_URL")
	if url == "" {
		srv, startErr := pgserver.Start(ctx, pgserver.Options{})
		if startErr != nil {
			return fmt.Errorf("FASTPUBSUB_DATABASE_URL is not set, and %w", startErr)
		}
		defer func() { err = errors.Join(err, srv.Stop()) }()
		url = srv.URL()
	}
	s, err := openShop(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return show(ctx, s, w)
}
