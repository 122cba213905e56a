package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Moment is what had been committed at one time, as a reader of the log sees it.
type Moment struct {
	Snapshot string // a pg_snapshot
	TopicNum int
}

const now = `SELECT pg_catalog.pg_current_snapshot()::text, t.num FROM {schema}.topics t WHERE t.id = $1`

// Now returns the present moment of a topic. It returns ErrNotFound if there is no such topic.
func (s *Store) Now(ctx context.Context, db DBTX, topicID string) (m Moment, err error) {
	err = db.QueryRow(ctx, s.now, topicID).Scan(&m.Snapshot, &m.TopicNum)
	return m, translate(err)
}

// A LogMessage is a message as it is in the log. Attributes is JSON text, nil for none.
type LogMessage struct {
	Xid, Base  int64 // of its record batch
	ID         [16]byte
	CreatedAt  time.Time
	Payload    string
	Attributes *string
}

// publishedBetween finds what one snapshot sees and an older one did not. So a transaction that commits late is neither missed
// nor seen twice. It begins at the oldest transaction that was in progress at the older one; what comes before was seen.
const publishedBetween = `
SELECT m.xid, m.base, {schema}.message_id(m.xid, m.base + p.i - 1), m.created_at, p.payload, p.attributes::text
FROM (
    SELECT m.xid, m.base, m.created_at, m.payloads, m.attributes
    FROM {schema}.messages m
    WHERE m.topic_num = $1 AND m.xid >= pg_catalog.pg_snapshot_xmin($2::text::pg_snapshot)::text::bigint
      AND (m.xid, m.base) > ($4, $5)
      AND NOT pg_catalog.pg_visible_in_snapshot(m.xid::text::xid8, $2::text::pg_snapshot)
      AND pg_catalog.pg_visible_in_snapshot(m.xid::text::xid8, $3::text::pg_snapshot)
    ORDER BY m.xid, m.base
    LIMIT $6
) m
CROSS JOIN LATERAL unnest(m.payloads, m.attributes) WITH ORDINALITY p(payload, attributes, i)
ORDER BY m.xid, m.base, p.i`

// PublishedBetween returns messages of a topic that were committed after one moment and up to another, in the order of the
// log: those in the next record batches behind position (xid, base), at most limit of these. It is no consumer: it changes
// nothing, and of what maintenance has removed meanwhile it returns nothing.
func (s *Store) PublishedBetween(ctx context.Context, db DBTX, from, to Moment, xid, base int64, limit int) ([]LogMessage, error) {
	rows, _ := db.Query(ctx, s.publishedBetween, to.TopicNum, from.Snapshot, to.Snapshot, xid, base, limit)
	msgs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LogMessage]) // it reports Query's error
	return msgs, translate(err)
}
