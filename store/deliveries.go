package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// A DeadLetter is a row of deliveries that is dead. Attributes is JSON text, nil for none.
type DeadLetter struct {
	Xid, Seq   int64
	Payload    string
	Attributes *string
	Attempts   int
	CreatedAt  time.Time
	LastError  *string
	DeadAt     time.Time
}

const listDeadLetters = `
SELECT xid, seq, payload, attributes, attempts, created_at, last_error, dead_at FROM {schema}.dead_letters($1, $2, $3)`

// ListDeadLetters returns a subscription's dead letters, oldest first; fewer than limit where they are large, but at least one.
// It returns ErrNotFound if there is no such subscription.
func (s *Store) ListDeadLetters(ctx context.Context, db DBTX, subID string, offset, limit int) ([]DeadLetter, error) {
	rows, _ := db.Query(ctx, s.listDeadLetters, subID, offset, limit) // CollectRows reports Query's error
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*DeadLetter, error) {
		var d struct {
			xid, seq            *int64
			payload, attributes *string
			attempts            *int
			createdAt, deadAt   *time.Time
			lastError           *string
		}
		err := row.Scan(&d.xid, &d.seq, &d.payload, &d.attributes, &d.attempts, &d.createdAt, &d.lastError, &d.deadAt)
		if err != nil || d.xid == nil {
			return nil, err
		}
		return &DeadLetter{*d.xid, *d.seq, *d.payload, d.attributes, *d.attempts, *d.createdAt, d.lastError, *d.deadAt}, nil
	})
	if err != nil {
		return nil, translate(err)
	}
	if len(all) == 0 {
		return nil, ErrNotFound
	}
	letters := make([]DeadLetter, 0, len(all))
	for _, d := range all {
		if d != nil {
			letters = append(letters, *d)
		}
	}
	return letters, nil
}

const reprocess = `SELECT {schema}.reprocess($1, $2, $3, $4)`

// Reprocess makes dead letters, which ascend by (Xid, Lo), available again, and returns how many. It returns ErrNotFound
// if there is no such subscription.
func (s *Store) Reprocess(ctx context.Context, db DBTX, subID string, ranges []Range) (int, error) {
	xids, los, his := split(ranges)
	return counted(db.QueryRow(ctx, s.reprocess, subID, xids, los, his))
}

const purge = `SELECT {schema}.purge($1, $2, $3, $4)`

// Purge removes dead letters, which ascend by (Xid, Lo), and returns how many. It returns ErrNotFound if there is no such
// subscription.
func (s *Store) Purge(ctx context.Context, db DBTX, subID string, ranges []Range) (int, error) {
	xids, los, his := split(ranges)
	return counted(db.QueryRow(ctx, s.purge, subID, xids, los, his))
}

// Metrics are the counts of a subscription. OldestAt is nil when nothing is unacked; Now is the database's time.
type Metrics struct {
	Available, Delayed, Delivered, Acked, Dead int64

	OldestAt  *time.Time
	Now       time.Time
	Estimated bool // Available, because a filter was not evaluated on all of the backlog
}

const metrics = `
SELECT available, delayed, delivered, acked, dead, oldest_at, now_at, estimated
FROM {schema}.metrics($1) WHERE now_at IS NOT NULL`

// Metrics returns ErrNotFound if there is no such subscription.
func (s *Store) Metrics(ctx context.Context, db DBTX, subID string) (Metrics, error) {
	rows, _ := db.Query(ctx, s.metrics, subID) // CollectExactlyOneRow reports Query's error
	m, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Metrics])
	return m, translate(err)
}

// Swept is what one step of a sweep did. More means that there is more to do.
type Swept struct {
	Expired, Died int
	More          bool
}

const sweep = `SELECT outcome, expired, died FROM {schema}.sweep($1)`

// Sweep ends what has expired of a subscription, one bounded step of it. It returns ErrNotFound if there is no such
// subscription and ErrBusy if its lock was held for too long.
func (s *Store) Sweep(ctx context.Context, db Batcher, subID string) (swept Swept, err error) {
	var outcome string
	err = inOne(ctx, db, row{&outcome, &swept.Expired, &swept.Died}, s.sweep, subID)
	if err == nil {
		err = refused(outcome)
	}
	if err != nil {
		return Swept{}, translate(err)
	}
	swept.More = outcome == "more"
	return swept, nil
}

const listExpired = `SELECT sub_id FROM {schema}.expired() ORDER BY sub_id`

// ListExpired returns the subscriptions that Sweep has something to do for.
func (s *Store) ListExpired(ctx context.Context, db DBTX) ([]string, error) {
	rows, _ := db.Query(ctx, s.listExpired) // CollectRows reports Query's error
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return ids, translate(err)
}

// removeOrphans removes some of what deleted subscriptions left. It goes from one number of a subscription to the next, not
// over all rows. Rows that somebody has locked are passed over.
const removeOrphans = `
WITH RECURSIVE subs (sub) AS (
    (SELECT d.sub FROM {schema}.deliveries d ORDER BY d.sub LIMIT 1)
    UNION ALL
    SELECT (SELECT d.sub FROM {schema}.deliveries d WHERE d.sub > subs.sub ORDER BY d.sub LIMIT 1)
    FROM subs WHERE subs.sub IS NOT NULL
), held AS (
    DELETE FROM {schema}.held_leases h WHERE NOT EXISTS (SELECT FROM {schema}.subscriptions s WHERE s.num = h.sub)
)
DELETE FROM {schema}.deliveries d
WHERE d.ctid = ANY (ARRAY(
    SELECT o.tid
    FROM subs
    CROSS JOIN LATERAL (
        SELECT d.ctid AS tid FROM {schema}.deliveries d WHERE d.sub = subs.sub LIMIT $1 FOR UPDATE SKIP LOCKED
    ) o
    WHERE NOT EXISTS (SELECT FROM {schema}.subscriptions s WHERE s.num = subs.sub)
    LIMIT $1))`

// RemoveOrphans removes up to limit messages of subscriptions that were deleted, and returns how many.
func (s *Store) RemoveOrphans(ctx context.Context, db DBTX, limit int) (int, error) {
	tag, err := db.Exec(ctx, s.removeOrphans, limit)
	return int(tag.RowsAffected()), translate(err)
}
