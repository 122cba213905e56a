// Package demo is what the examples have around them and a program of yours does not need: a database to play in, which is
// gone afterwards.
package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/migrations"
)

const (
	timeout      = time.Minute // for an example that waits for what does not come
	closeTimeout = 10 * time.Second
)

// A DB is an example's database.
type DB struct {
	Pool   *pgxpool.Pool // its search_path is an empty schema, for the example's own tables
	Schema string        // another one, with fastpubsub's tables
}

// Main runs an example and ends the program: with exit code 1 and the error on standard error, if there is one.
func Main(example func(ctx context.Context, db DB) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := Run(ctx, example)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}

// Run runs an example in the database that FASTPUBSUB_DATABASE_URL names, in schemas of its own which it drops afterwards; else
// on a throw-away server. The example's ctx ends after a minute.
func Run(ctx context.Context, example func(ctx context.Context, db DB) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	url := os.Getenv("FASTPUBSUB_DATABASE_URL")
	if url == "" {
		srv, startErr := pgserver.Start(ctx, pgserver.Options{})
		if startErr != nil {
			return fmt.Errorf("FASTPUBSUB_DATABASE_URL is not set, and %w", startErr)
		}
		defer func() { err = errors.Join(err, srv.Stop()) }()
		url = srv.URL()
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return errors.New("the database URL cannot be read") // the error quotes it
	}
	own := "example_" + strings.ToLower(rand.Text()[:8])
	config.ConnConfig.RuntimeParams["search_path"] = own
	config.MaxConns = 10
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	db := DB{Pool: pool, Schema: own + "_pubsub"}
	defer func() { err = errors.Join(err, drop(pool, own, db.Schema)) }()
	if _, err := pool.Exec(ctx, "CREATE SCHEMA "+own); err != nil {
		return err
	}
	if err := migrations.Up(ctx, config.ConnConfig, db.Schema); err != nil {
		return err
	}
	return example(ctx, db)
}

// drop takes everything away, and closes the pool.
func drop(pool *pgxpool.Pool, schemas ...string) error {
	defer pool.Close()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, name := range schemas {
		_, err := pool.Exec(ctx, "DROP SCHEMA IF EXISTS "+name+" CASCADE")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
