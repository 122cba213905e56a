package store

import (
	"context"
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
func (s *Store) CreateSubscription(ctx context.Context, conn Beginner, sub Subscription, path *string) (Subscription, error) {
	var created Subscription
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		var outcome string
		err := tx.QueryRow(ctx, s.createSubscription, sub.ID, sub.TopicID, sub.Filter, path, sub.MaxDeliveryAttempts,
			sub.BackoffMinSeconds, sub.BackoffMaxSeconds, sub.AckDeadlineSeconds).Scan(&outcome)
		if err != nil {
			return translate(err)
		}
		switch outcome {
		case "created":
			created, err = s.GetSubscription(ctx, tx, sub.ID)
			return err
		case "exists":
			return fmt.Errorf("subscription %q: %w", sub.ID, ErrExists)
		default:
			return fmt.Errorf("topic %q: %w", sub.TopicID, ErrNotFound)
		}
	})
	return created, err
}

// Beginner starts transactions: a pool or a connection.
type Beginner interface {
	BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
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
