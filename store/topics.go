package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Topic is a row of topics.
type Topic struct {
	ID        string
	CreatedAt time.Time
}

const createTopic = `INSERT INTO {schema}.topics (id) VALUES ($1) RETURNING id, created_at`

// CreateTopic returns ErrExists if the id is taken.
func (s *Store) CreateTopic(ctx context.Context, db DBTX, id string) (Topic, error) {
	return oneTopic(db.Query(ctx, s.createTopic, id))
}

const getTopic = `SELECT id, created_at FROM {schema}.topics WHERE id = $1`

// GetTopic returns ErrNotFound if there is no such topic.
func (s *Store) GetTopic(ctx context.Context, db DBTX, id string) (Topic, error) {
	return oneTopic(db.Query(ctx, s.getTopic, id))
}

func oneTopic(rows pgx.Rows, _ error) (Topic, error) { // CollectExactlyOneRow reports Query's error
	topic, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Topic])
	return topic, translate(err)
}

const listTopics = `SELECT id, created_at FROM {schema}.topics ORDER BY id OFFSET $1 LIMIT $2`

// ListTopics pages through the topics in the order of their ids, bytewise.
func (s *Store) ListTopics(ctx context.Context, db DBTX, offset, limit int) ([]Topic, error) {
	rows, _ := db.Query(ctx, s.listTopics, offset, limit) // CollectRows reports Query's error
	topics, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Topic])
	return topics, translate(err)
}

// The subscriptions go with it, by the cascade of their foreign key. Messages, cursors and leases stay: nothing finds
// them any more.
const deleteTopic = `DELETE FROM {schema}.topics WHERE id = $1`

// DeleteTopic returns ErrNotFound if there is no such topic.
func (s *Store) DeleteTopic(ctx context.Context, db DBTX, id string) error {
	return deleteOne(ctx, db, s.deleteTopic, id)
}

func deleteOne(ctx context.Context, db DBTX, sql, id string) error {
	tag, err := db.Exec(ctx, sql, id)
	if err != nil {
		return translate(err)
	}
	if tag.RowsAffected() == 0 {
		return ErrNotFound
	}
	return nil
}
