package takeover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fastpubsub/fastpubsub/internal/jsontext"
)

// A batch is written in one transaction.
const (
	batchMessages = 1000
	batchBytes    = 8 << 20

	maxPayloadBytes = 16 << 20 // as in a publish
)

// A message is one that the Python server has for a subscription.
type message struct {
	ID             string
	SubscriptionID string
	Payload        *string
	Status         string
	Attempts       int
	AvailableAt    *time.Time
	LockedAt       *time.Time
	LockedBy       *string
	CreatedAt      time.Time
}

// listMessages has those that are not done, in the order in which they came: so do their ids with us.
const listMessages = `
SELECT id::text, subscription_id::text, payload::text, status::text, delivery_attempts,
       available_at::timestamptz, locked_at::timestamptz, locked_by::text, created_at::timestamptz
FROM {from}.subscription_messages
WHERE status::text <> 'acked'
ORDER BY created_at, id`

func (r *run) messages(ctx context.Context) error {
	if !r.DryRun {
		if err := r.createMarks(ctx); err != nil {
			return err
		}
	}
	rows, err := r.source.Query(ctx, r.fill(listMessages))
	if err != nil {
		return err
	}
	defer rows.Close()
	left := make(map[string]int) // messages of subscriptions that were refused
	var b batch
	for rows.Next() {
		msg, err := pgx.RowToStructByPos[message](rows)
		if err != nil {
			return err
		}
		counts := &r.result.Messages
		if msg.Status == "dlq" {
			counts = &r.result.DeadLetters
		}
		counts.Found++
		sub := r.subs[msg.SubscriptionID]
		if sub == nil {
			left[msg.SubscriptionID]++
			continue
		}
		if err := b.add(sub, &msg); err != nil {
			r.refuse("message", msg.ID, err)
			continue
		}
		if len(b.ids) >= batchMessages || b.bytes >= batchBytes {
			if err := r.write(ctx, &b); err != nil {
				return err
			}
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for id, n := range left {
		r.result.Refused += n
		r.Logger.Error("refused with their subscription", "subscription", id, "messages", n)
	}
	return r.write(ctx, &b)
}

// A batch has a column for each of a message's.
type batch struct {
	ids, payloads, states []string
	subs, attempts        []int32
	nextAt, createdAt     []time.Time
	deadAt                []*time.Time
	consumers             []*string
	newSubs, newDead      int // of a dry run: messages of subscriptions that are not there yet, and dead letters of these
	bytes                 int
}

// add turns a message into a delivery. Its error is why it cannot be one.
//
// One that was with a consumer is leased until the ack deadline would have passed, and then comes again, or dies if that was
// its last attempt: nobody can ack it any more, but its consumer may still be at work on it.
func (b *batch) add(sub *subscription, msg *message) error {
	if msg.Payload == nil {
		return errors.New("it has no payload")
	}
	if len(*msg.Payload) > maxPayloadBytes {
		return fmt.Errorf("its payload must have at most %d bytes, not %d", maxPayloadBytes, len(*msg.Payload))
	}
	if err := jsontext.CheckObject([]byte(*msg.Payload)); err != nil {
		return fmt.Errorf("its payload: %w", err)
	}
	nextAt := msg.CreatedAt
	if msg.AvailableAt != nil {
		nextAt = *msg.AvailableAt
	}
	state, attempts := "", msg.Attempts
	var deadAt *time.Time
	var consumer *string
	switch msg.Status {
	case "available": // for one attempt at least, even if the limit was lowered
		state, attempts = "available", max(0, min(attempts, sub.maxAttempts-1))
	case "delivered":
		state, attempts, consumer = "leased", max(1, min(attempts, sub.maxAttempts)), msg.LockedBy
		if msg.LockedAt != nil {
			nextAt = msg.LockedAt.Add(sub.ackDeadline)
		}
	case "dlq": // when it died is not known: the last thing that is
		state, attempts = "dead", max(1, min(attempts, sub.maxAttempts))
		if msg.LockedAt != nil && msg.LockedAt.After(nextAt) {
			nextAt = *msg.LockedAt
		}
		deadAt = &nextAt
	default:
		return fmt.Errorf("there is no status %q", msg.Status)
	}
	if sub.isNew {
		b.newSubs++
		if state == "dead" {
			b.newDead++
		}
		return nil
	}
	b.ids = append(b.ids, msg.ID)
	b.payloads = append(b.payloads, *msg.Payload)
	b.states = append(b.states, state)
	b.subs = append(b.subs, int32(sub.num))
	b.attempts = append(b.attempts, int32(attempts))
	b.nextAt = append(b.nextAt, nextAt)
	b.createdAt = append(b.createdAt, msg.CreatedAt)
	b.deadAt = append(b.deadAt, deadAt)
	b.consumers = append(b.consumers, consumer)
	b.bytes += len(*msg.Payload)
	return nil
}

// createMarks makes the table of what came over. It has each message's id there, and its position here, from which its id
// follows: message_id(xid, seq). Who never imports has no such table; who will not again may drop it.
func (r *run) createMarks(ctx context.Context) error {
	_, err := r.Pool.Exec(ctx, r.fill(`
CREATE TABLE IF NOT EXISTS {schema}.imported_messages (
    id  uuid NOT NULL,
    xid bigint NOT NULL,
    seq bigint NOT NULL,
    sub int NOT NULL,
    CONSTRAINT imported_messages_pkey PRIMARY KEY (sub, id)
)`))
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == "23505" || pgErr.Code == "42P07") { // another run made it at this moment
		return nil
	}
	return err
}

// writeBatch marks messages that are not marked yet, and writes those to deliveries. A subscription is looked at by its
// number, so that one which was deleted meanwhile gets nothing, and one of the same name gets all.
//
// A delivery has to lie behind the cursor. A seq is unique in the whole log by itself, so any xid that the cursor has passed
// will do.
const writeBatch = `
WITH drawn AS MATERIALIZED (
    SELECT nextval('{schema}.message_base') << 16 AS base
), given AS (
    SELECT g.*, c.xid - 1 AS xid, drawn.base + g.i - 1 AS seq
    FROM drawn
    CROSS JOIN unnest($1::text[]::uuid[], $2::int[], $3::text[], $4::int[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[],
                      $8::text[], $9::text[])
        WITH ORDINALITY g(id, sub, state, attempts, next_at, created_at, dead_at, consumer, payload, i)
    CROSS JOIN LATERAL {schema}.newest_cursor(g.sub) c
    WHERE EXISTS (SELECT FROM {schema}.subscriptions s WHERE s.num = g.sub)
), marked AS (
    INSERT INTO {schema}.imported_messages (id, xid, seq, sub)
    SELECT id, xid, seq, sub FROM given
    ON CONFLICT ON CONSTRAINT imported_messages_pkey DO NOTHING
    RETURNING id, sub
), written AS (
    INSERT INTO {schema}.deliveries (xid, seq, next_at, created_at, dead_at, sub, attempts, state, consumer, payload)
    SELECT g.xid, g.seq, g.next_at, g.created_at, g.dead_at, g.sub, g.attempts, g.state::{schema}.delivery_state, g.consumer, g.payload
    FROM given g JOIN marked USING (id, sub)
    RETURNING state
)
SELECT count(*) FILTER (WHERE state <> 'dead'), count(*) FILTER (WHERE state = 'dead') FROM written`

// countUnmarked is what writeBatch would do.
const countUnmarked = `
SELECT count(*) FILTER (WHERE g.state <> 'dead'), count(*) FILTER (WHERE g.state = 'dead')
FROM unnest($1::text[]::uuid[], $2::int[], $3::text[]) g(id, sub, state)
WHERE NOT EXISTS (SELECT FROM {schema}.imported_messages m WHERE m.sub = g.sub AND m.id = g.id)`

// write writes a batch, if it is not empty, and empties it.
func (r *run) write(ctx context.Context, b *batch) error {
	var live, dead int
	switch {
	case len(b.ids) == 0:
	case r.DryRun:
		var marks bool
		err := r.Pool.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, r.fill("{schema}.imported_messages")).Scan(&marks)
		if err != nil {
			return err
		}
		query := r.fill(countUnmarked)
		if !marks {
			query = `SELECT count(*) FILTER (WHERE state <> 'dead'), count(*) FILTER (WHERE state = 'dead')
FROM unnest($1::text[]::uuid[], $2::int[], $3::text[]) g(id, sub, state)`
		}
		if err := r.Pool.QueryRow(ctx, query, b.ids, b.subs, b.states).Scan(&live, &dead); err != nil {
			return err
		}
	default:
		err := pgx.BeginFunc(ctx, r.Pool, func(tx pgx.Tx) error {
			// As in the engine's function publish: ids must outlive a crash.
			if _, err := tx.Exec(ctx, `
SELECT set_config('synchronous_commit', 'local', true) WHERE current_setting('synchronous_commit') = 'off'`); err != nil {
				return err
			}
			return tx.QueryRow(ctx, r.fill(writeBatch), b.ids, b.subs, b.states, b.attempts, b.nextAt, b.createdAt, b.deadAt,
				b.consumers, b.payloads).Scan(&live, &dead)
		})
		if err != nil {
			return err
		}
	}
	r.result.Messages.New += live + b.newSubs - b.newDead
	r.result.DeadLetters.New += dead + b.newDead
	*b = batch{}
	return nil
}
