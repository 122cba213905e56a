package demo_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/examples/internal/demo"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// An example has tables of its own and fastpubsub's, its error comes out, and it leaves nothing behind.
func TestRun(t *testing.T) {
	db := storetest.New(t)
	t.Setenv("FASTPUBSUB_DATABASE_URL", db.URL)
	broken := errors.New("the promise is broken")
	for _, want := range []error{nil, broken} {
		ran := false
		err := demo.Run(t.Context(), func(ctx context.Context, mine demo.DB) error {
			ran = true
			if _, err := mine.Pool.Exec(ctx, "CREATE TABLE orders (id int)"); err != nil {
				t.Error(err)
			}
			broker, err := fastpubsub.New(mine.Pool, fastpubsub.Config{Schema: mine.Schema})
			if err == nil {
				err = broker.Check(ctx)
			}
			if err != nil {
				t.Error(err)
			}
			return want
		})
		if !ran || !errors.Is(err, want) {
			t.Errorf("ran: %t, returned %v, want %v", ran, err, want)
		}
	}
	var left int
	const schemas = `SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname ~ '^example_[a-z2-7]{8}(_pubsub)?$'`
	if err := db.Pool.QueryRow(t.Context(), schemas).Scan(&left); err != nil || left > 0 {
		t.Errorf("%d schemas left, %v", left, err)
	}
}

// The URL has a password.
func TestRunQuotesNoURL(t *testing.T) {
	t.Setenv("FASTPUBSUB_DATABASE_URL", "postgres://user:pass word@host:port/database")
	err := demo.Run(t.Context(), func(context.Context, demo.DB) error { return nil })
	if err == nil || strings.Contains(err.Error(), "word") {
		t.Errorf("error: %v", err)
	}
}
