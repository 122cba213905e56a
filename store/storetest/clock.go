package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/testdb"
)

// A Clock is the time of a schema, which goes on only when it is moved, or by itself, too.
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

// How much the time differs from the server's is a sequence's value here.
const runClock = `
CREATE SEQUENCE {schema}.test_clock MINVALUE -1000000000000000 START 0;
CREATE OR REPLACE FUNCTION {schema}.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
    SELECT clock_timestamp() + last_value * interval '1 microsecond' FROM {schema}.test_clock
$$`

// RunClock makes the engine's clock in the schema one that goes on by itself, and that can be moved.
func (db *DB) RunClock(ctx context.Context) (*Clock, error) {
	if _, err := db.Pool.Exec(ctx, db.SQL(runClock)); err != nil {
		return nil, err
	}
	return &Clock{db}, nil
}

// Move moves the clock on, or back.
func (c *Clock) Move(ctx context.Context, d time.Duration) error {
	return testdb.MoveClock(ctx, c.db.Pool, c.db.Schema, d)
}
