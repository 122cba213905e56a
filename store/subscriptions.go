package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Subscription is a row of subscriptions. Filter is JSON text, nil for none.
type Subscription struct {
	ID                  string
	TopicID             string
	Filter              *string
	MaxDeliveryAttempts int
	BackoffMinSeconds   int
	BackoffMaxSeconds   int
	AckDeadlineSeconds  int
	CreatedAt           time.Time
}

// The isolation level of the transaction must not be left to the session's default; see the function.
const createSubscription = `
SELECT {schema}.create_subscription($1, $2, $3::text::json, $4::text::jsonpath, $5, $6, $7, $8)`

// CreateSubscription stores sub, with path the compiled form of its filter (nil matches everything), and returns it as
// it was stored. It returns ErrExists if the id is taken, also where there is no such topic, and else ErrNotFound if
// there is none.
func (s *Store) CreateSubscription(ctx context.Context, db Batcher, sub Subscription, path *string) (Subscription, error) {
	var outcome string
	var created Subscription
	var b pgx.Batch
	b.Queue(`begin isolation level read committed read write`)
	b.Queue(s.createSubscription, sub.ID, sub.TopicID, sub.Filter, path, sub.MaxDeliveryAttempts,
		sub.BackoffMinSeconds, sub.BackoffMaxSeconds, sub.AckDeadlineSeconds).QueryRow(func(row pgx.Row) error {
		return row.Scan(&outcome)
	})
	b.Queue(s.getSubscription, sub.ID).Query(func(rows pgx.Rows) (err error) {
		created, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Subscription])
		if errors.Is(err, pgx.ErrNoRows) { // and so there is no such topic, either
			return nil
		}
		return err
	})
	b.Queue(`commit`)
	if err := db.SendBatch(ctx, &b).Close(); err != nil {
		return Subscription{}, translate(err)
	}
	switch outcome {
	case "created":
		return created, nil
	case "exists":
		return Subscription{}, fmt.Errorf("subscription %q: %w", sub.ID, ErrExists)
	default:
		return Subscription{}, fmt.Errorf("topic %q: %w", sub.TopicID, ErrNotFound)
	}
}

const subscriptionColumns = `s.id, t.id, s.filter::text, s.max_delivery_attempts, s.backoff_min_seconds, s.backoff_max_seconds,
       s.ack_deadline_seconds, s.created_at
FROM {schema}.subscriptions s
JOIN {schema}.topics t ON t.num = s.topic_num`

const getSubscription = `SELECT ` + subscriptionColumns + ` WHERE s.id = $1`

// GetSubscription returns ErrNotFound if there is no such subscription.
func (s *Store) GetSubscription(ctx context.Context, db DBTX, id string) (Subscription, error) {
	rows, _ := db.Query(ctx, s.getSubscription, id) // CollectExactlyOneRow reports Query's error
	sub, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Subscription])
	return sub, translate(err)
}

const listSubscriptions = `SELECT ` + subscriptionColumns + ` ORDER BY s.id OFFSET $1 LIMIT $2`

// ListSubscriptions pages through the subscriptions in the order of their ids, bytewise.
func (s *Store) ListSubscriptions(ctx context.Context, db DBTX, offset, limit int) ([]Subscription, error) {
	rows, _ := db.Query(ctx, s.listSubscriptions, offset, limit) // CollectRows reports Query's error
	subs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Subscription])
	return subs, translate(err)
}

// Cursors and leases stay; see deleteTopic.
const deleteSubscription = `DELETE FROM {schema}.subscriptions WHERE id = $1`

// DeleteSubscription returns ErrNotFound if there is no such subscription.
func (s *Store) DeleteSubscription(ctx context.Context, db DBTX, id string) error {
	return deleteOne(ctx, db, s.deleteSubscription, id)
}
