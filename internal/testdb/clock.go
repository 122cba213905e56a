package testdb

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/store"
)

// The time is a sequence's value, in microseconds: every transaction sees it at once, whatever its snapshot.
const stopClock = `
CREATE SEQUENCE {schema}.test_clock MINVALUE 0;
CREATE OR REPLACE FUNCTION {schema}.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
    SELECT timestamptz 'epoch' + last_value * interval '1 microsecond' FROM {schema}.test_clock
$$;
SELECT setval('{schema}.test_clock', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)`

// StopClock stops the engine's clock in a schema.
func StopClock(ctx context.Context, db store.DBTX, schema string) error {
	if _, err := db.Exec(ctx, Fill(stopClock, schema), pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("stop the clock: %w", err)
	}
	return nil
}

const moveClock = `SELECT setval('{schema}.test_clock', last_value + $1) FROM {schema}.test_clock`

// MoveClock moves a clock that was stopped on, or back, by whole microseconds.
func MoveClock(ctx context.Context, db store.DBTX, schema string, d time.Duration) error {
	if _, err := db.Exec(ctx, Fill(moveClock, schema), d.Microseconds()); err != nil {
		return fmt.Errorf("move the clock: %w", err)
	}
	return nil
}
