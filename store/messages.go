package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Range is a stretch of one transaction's messages: those of transaction Xid with Lo <= seq < Hi. Nack and Extend
// take those alone whose current delivery is the Attempt-th; 0 is any.
type Range struct {
	Xid, Lo, Hi int64
	Attempt     int
}

// Published says where the messages of one publish are: message i has the position (Xid, Bases[i/PerBatch] +
// i%PerBatch).
type Published struct {
	Xid      int64
	Bases    []int64
	PerBatch int
}

const publish = `SELECT {schema}.publish($1, $2, $3::text[]::jsonb[])`

// Publish appends messages to a topic's log. Payloads are JSON objects, checked; attributes is nil, or has the JSON of
// one object, or nil, for each payload. It returns ErrNotFound if there is no such topic.
func (s *Store) Publish(ctx context.Context, db DBTX, topicID string, payloads []string, attributes []*string) (Published, error) {
	var r []int64
	if err := db.QueryRow(ctx, s.publish, topicID, payloads, attributes).Scan(&r); err != nil {
		return Published{}, translate(err)
	}
	if r == nil {
		return Published{}, ErrNotFound
	}
	return Published{Xid: r[0], PerBatch: int(r[1]), Bases: r[2:]}, nil
}

// A Claim asks for messages of a subscription.
type Claim struct {
	SubscriptionID     string
	Consumer           string
	Max                int
	AckDeadlineSeconds *int // nil for the subscription's
	Single             bool // a lease row for each message
}

// Claimed are messages of one record batch that a claim took: those of transaction Xid in the stretches [Los[i],
// His[i]), with payloads and, unless nil, attributes in that order. This is their Attempts-th delivery.
type Claimed struct {
	Xid        int64
	Los, His   []int64
	CreatedAt  time.Time
	Payloads   []string
	Attributes []*string
	Attempts   int
}

// A Batcher sends several statements in one round trip: a pool or a connection.
type Batcher interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

const (
	claim   = `SELECT {schema}.claim($1, $2, $3, $4, $5)`
	claimed = `SELECT xid, los, his, created_at, payloads, attributes, attempts FROM {schema}.claimed()`
)

// Left is what a claim left for others.
type Left int

const (
	LeftUnknown Left = iota
	LeftMore         // none of what was examined was for it, and there may be more: call again
	LeftNothing      // of what had been committed and was due; something was taken
)

// Claim takes messages and reads them, in one round trip of two transactions: the claim commits, and with that lets go
// of the subscription, before the first payload is read.
//
// It returns ErrNotFound if there is no such subscription and ErrBusy if its lock was held for too long.
func (s *Store) Claim(ctx context.Context, db Batcher, c Claim) (batches []Claimed, left Left, err error) {
	var outcome string
	var b pgx.Batch
	b.Queue(`begin isolation level read committed read write`)
	b.Queue(s.claim, c.SubscriptionID, c.Consumer, c.Max, c.AckDeadlineSeconds, c.Single).QueryRow(func(row pgx.Row) error {
		return row.Scan(&outcome)
	})
	b.Queue(`commit`)
	b.Queue(s.claimed).Query(func(rows pgx.Rows) error {
		batches, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Claimed])
		return err
	})
	if err := db.SendBatch(ctx, &b).Close(); err != nil {
		return nil, LeftUnknown, translate(err)
	}
	if err := refused(outcome); err != nil {
		return nil, LeftUnknown, err
	}
	switch outcome {
	case "more":
		left = LeftMore
	case "all":
		left = LeftNothing
	}
	return batches, left, nil
}

const (
	ack    = `SELECT {schema}.ack($1, $2, $3, $4)`
	ackOne = `SELECT {schema}.ack_one($1, $2, $3)`
)

// Ack acks messages, which ascend by (Xid, Lo), and returns how many of them this call acked. It returns ErrNotFound if
// there is no such subscription.
func (s *Store) Ack(ctx context.Context, db DBTX, subID string, ranges []Range) (int, error) {
	xids, los, his := split(ranges)
	return counted(db.QueryRow(ctx, s.ack, subID, xids, los, his))
}

// AckTx is Ack for a transaction that goes on: a message alone is looked for in a lease of its own first, which is cheaper if
// it has one.
func (s *Store) AckTx(ctx context.Context, db DBTX, subID string, ranges []Range) (int, error) {
	sql, args := s.ackInTx(subID, ranges)
	return counted(db.QueryRow(ctx, sql, args...))
}

func (s *Store) ackInTx(subID string, ranges []Range) (sql string, args []any) {
	if len(ranges) == 1 && ranges[0].Hi == ranges[0].Lo+1 {
		return s.ackOne, []any{subID, ranges[0].Xid, ranges[0].Lo}
	}
	xids, los, his := split(ranges)
	return s.ack, []any{subID, xids, los, his}
}

// BeginAck begins a transaction with AckTx, in one round trip. The caller has to end tx, also if there is an error.
func (s *Store) BeginAck(ctx context.Context, db Batcher, subID string, ranges []Range) (tx pgx.Tx, acked int, err error) {
	sql, args := s.ackInTx(subID, ranges)
	var b pgx.Batch
	b.BeginTx(pgx.TxOptions{})
	b.Queue(sql, args...).QueryRow(func(row pgx.Row) error {
		acked, err = counted(row)
		return err
	})
	results := db.SendBatch(ctx, &b)
	err = results.Close()
	return results.Tx(), acked, translate(err)
}

// counted reads the number of messages that a function changed, which is NULL where there is no such subscription.
func counted(row pgx.Row) (int, error) {
	var n *int
	if err := row.Scan(&n); err != nil {
		return 0, translate(err)
	}
	if n == nil {
		return 0, ErrNotFound
	}
	return *n, nil
}

const nack = `SELECT {schema}.nack($1, $2, $3, $4, $5, $6, $7, $8)`

// A Nack says what becomes of leased messages, which ascend by (Xid, Lo). They wait for DelaySeconds, or for the
// subscription's backoff if that is nil; Act is a word of the function's.
type Nack struct {
	Ranges       []Range
	DelaySeconds *int
	Error        *string
	Act          string
}

// What Nack.Act may be.
const (
	Retry    = "retry"
	Bury     = "bury"
	GiveBack = "give back"
)

func (s *Store) nackArgs(subID string, n Nack) []any {
	xids, los, his := split(n.Ranges)
	return []any{subID, xids, los, his, attempts(n.Ranges), n.DelaySeconds, n.Error, n.Act}
}

// Nack gives leased messages back, and returns how many. It returns ErrNotFound if there is no such subscription.
func (s *Store) Nack(ctx context.Context, db DBTX, subID string, n Nack) (int, error) {
	return counted(db.QueryRow(ctx, s.nack, s.nackArgs(subID, n)...))
}

// NackAll is several calls of Nack in one round trip and one transaction. It returns as many counts, which are 0 after an error.
func (s *Store) NackAll(ctx context.Context, db Batcher, subID string, nacks []Nack) ([]int, error) {
	counts := make([]int, len(nacks))
	var b pgx.Batch
	b.Queue(`begin isolation level read committed read write`)
	for i, n := range nacks {
		b.Queue(s.nack, s.nackArgs(subID, n)...).QueryRow(func(row pgx.Row) (err error) {
			counts[i], err = counted(row)
			return err
		})
	}
	b.Queue(`commit`)
	if err := db.SendBatch(ctx, &b).Close(); err != nil {
		clear(counts)
		return counts, translate(err)
	}
	return counts, nil
}

const extend = `SELECT {schema}.extend($1, $2, $3, $4, $5, $6)`

// Extend gives leased messages, which ascend by (Xid, Lo), another ack deadline, so many seconds from now, and returns how
// many. 0 gives them back. It returns ErrNotFound if there is no such subscription.
func (s *Store) Extend(ctx context.Context, db DBTX, subID string, ranges []Range, ackDeadlineSeconds int) (int, error) {
	xids, los, his := split(ranges)
	return counted(db.QueryRow(ctx, s.extend, subID, xids, los, his, attempts(ranges), ackDeadlineSeconds))
}

func split(ranges []Range) (xids, los, his []int64) {
	xids, los, his = make([]int64, len(ranges)), make([]int64, len(ranges)), make([]int64, len(ranges))
	for i, r := range ranges {
		xids[i], los[i], his[i] = r.Xid, r.Lo, r.Hi
	}
	return xids, los, his
}

func attempts(ranges []Range) []int32 {
	all := make([]int32, len(ranges))
	for i, r := range ranges {
		all[i] = int32(r.Attempt)
	}
	return all
}

// A Look is what a subscription would find. DueInSeconds is when to look again in any case, nil for never.
type Look struct {
	SubscriptionID string
	TopicID        string
	Filtered       bool
	Ready          bool
	DueInSeconds   *float64
}

const look = `SELECT sub_id, topic_id, filtered, ready, due_in_seconds FROM {schema}.look($1)`

// Look says for subscriptions whether a claim would find something. It writes nothing and waits for nobody. Those that do
// not exist are left out.
func (s *Store) Look(ctx context.Context, db DBTX, subIDs []string) ([]Look, error) {
	rows, _ := db.Query(ctx, s.look, subIDs) // CollectRows reports Query's error
	looks, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Look])
	return looks, translate(err)
}

// A record batch draws its base before its transaction commits.
const lastBase = `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.message_base`

// LastBase is a number that differs from what it was before if anybody has begun to publish since.
func (s *Store) LastBase(ctx context.Context, db DBTX) (int64, error) {
	var n int64
	err := db.QueryRow(ctx, s.lastBase).Scan(&n)
	return n, translate(err)
}

// The server folds what one transaction says twice. What it says is not written, so the commit waits for no disk.
const notify = `SELECT pg_catalog.pg_notify($1, p) FROM pg_catalog.unnest($2::text[]) p`

// Notify sends notifications on a channel.
func (s *Store) Notify(ctx context.Context, db DBTX, channel string, payloads []string) error {
	_, err := db.Exec(ctx, notify, channel, payloads)
	return err
}

// Whoever is out of the list of those that run is visible; NULL is one that ended long ago.
const finishedTransactions = `
SELECT x FROM pg_catalog.unnest($1::bigint[]) x
WHERE pg_catalog.pg_xact_status(x::text::xid8) IS DISTINCT FROM 'in progress'`

// FinishedTransactions returns those of some transactions that have committed or rolled back.
func (s *Store) FinishedTransactions(ctx context.Context, db DBTX, xids []int64) ([]int64, error) {
	rows, _ := db.Query(ctx, finishedTransactions, xids) // CollectRows reports Query's error
	finished, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	return finished, err
}
