package fastpubsub

import (
	"context"
	"fmt"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/idrule"
)

// A Topic is where messages are published.
type Topic struct {
	// ID is 1 to 128 letters, digits, dots, underscores and hyphens, but neither "." nor "..".
	ID        string
	CreatedAt time.Time // UTC
}

func checkID(p *problems, field, id string) {
	if kind, msg := idrule.Check(id); kind != "" {
		p.add(field, kind, "%s", msg)
	}
}

// CreateTopic creates a topic. It returns ErrExists if the id is taken and an InvalidError for an id that is not one.
// When ctx is cancelled, the topic may have been created all the same.
func (b *Broker) CreateTopic(ctx context.Context, id string) (Topic, error) {
	var p problems
	checkID(&p, "id", id)
	if err := p.err(); err != nil {
		return Topic{}, fmt.Errorf("create topic: %w", err)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Topic{}, err
	}
	row, err := b.store.CreateTopic(ctx, b.pool, id)
	if err != nil {
		return Topic{}, fmt.Errorf("create topic %q: %w", id, err)
	}
	row.CreatedAt = row.CreatedAt.UTC()
	return Topic(row), nil
}

// GetTopic returns ErrNotFound if there is no such topic.
func (b *Broker) GetTopic(ctx context.Context, id string) (Topic, error) {
	if !idrule.Matches(id) { // Postgres would refuse some as text
		return Topic{}, fmt.Errorf("get topic %q: %w", id, ErrNotFound)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Topic{}, err
	}
	row, err := b.store.GetTopic(ctx, b.pool, id)
	if err != nil {
		return Topic{}, fmt.Errorf("get topic %q: %w", id, err)
	}
	row.CreatedAt = row.CreatedAt.UTC()
	return Topic(row), nil
}

// ListOptions says which part of a list is wanted.
type ListOptions struct {
	Offset int // how many to pass over; default 0
	Limit  int // how many to return at most, 1 to 1,000; default 10
}

func (o *ListOptions) check() error {
	var p problems
	if o.Offset < 0 {
		p.add("offset", "greater_than_equal", "must be at least 0, not %d", o.Offset)
	}
	if o.Limit == 0 {
		o.Limit = 10
	}
	checkRange(&p, "limit", o.Limit, 1, 1000)
	return p.err()
}

func checkRange(p *problems, field string, value, lowest, highest int) {
	if value < lowest {
		p.add(field, "greater_than_equal", "must be at least %d, not %d", lowest, value)
	} else if value > highest {
		p.add(field, "less_than_equal", "must be at most %d, not %d", highest, value)
	}
}

// ListTopics returns topics in the order of their ids, bytewise. It returns an InvalidError for options out of range.
func (b *Broker) ListTopics(ctx context.Context, options ListOptions) ([]Topic, error) {
	if err := options.check(); err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return nil, err
	}
	rows, err := b.store.ListTopics(ctx, b.pool, options.Offset, options.Limit)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	topics := make([]Topic, len(rows))
	for i, row := range rows {
		row.CreatedAt = row.CreatedAt.UTC()
		topics[i] = Topic(row)
	}
	return topics, nil
}

// DeleteTopic deletes a topic with its subscriptions and all that they have not delivered. It waits for nobody;
// messages that others publish at this moment are lost with it, and acks of theirs count nothing. It returns
// ErrNotFound if there is no such topic.
func (b *Broker) DeleteTopic(ctx context.Context, id string) error {
	if !idrule.Matches(id) { // Postgres would refuse some as text
		return fmt.Errorf("delete topic %q: %w", id, ErrNotFound)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return err
	}
	if err := b.store.DeleteTopic(ctx, b.pool, id); err != nil {
		return fmt.Errorf("delete topic %q: %w", id, err)
	}
	return nil
}
