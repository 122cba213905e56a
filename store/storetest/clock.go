package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/testdb"
)

// A Clock is the time of a schema, which stands still until it is moved.
type Clock struct {
	db *DB
}

// StopClock stops the engine's clock in the schema.
func (db *DB) StopClock(tb testing.TB) *Clock {
	tb.Helper()
	if err := testdb.StopClock(tb.Context(), db.Pool, db.Schema); err != nil {
		tb.Fatal(err)
	}
	return &Clock{db}
}

// Move moves the clock on, or back.
func (c *Clock) Move(ctx context.Context, d time.Duration) error {
	return testdb.MoveClock(ctx, c.db.Pool, c.db.Schema, d)
}
