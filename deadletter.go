package fastpubsub

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/idrule"
)

// A DeadLetter is a message that was delivered as often as its subscription allows and never acked. DeliveryAttempts is how
// often that was.
type DeadLetter struct {
	Message
	LastError string    // what the last failure said; empty if none did
	DeadAt    time.Time // when it was given up; UTC
}

// DeadLetters returns the dead letters of a subscription, those that were given up first first. They end before they have
// more than 64 MiB of payloads, attributes and errors, but for the first: that fewer than the limit come does not mean that
// there are no more; that none comes does. It returns ErrNotFound if there is no such subscription and an InvalidError for
// options out of range.
func (b *Broker) DeadLetters(ctx context.Context, subscriptionID string, options ListOptions) ([]DeadLetter, error) {
	if err := options.check(); err != nil {
		return nil, fmt.Errorf("list dead letters of %q: %w", subscriptionID, err)
	}
	if !idrule.Matches(subscriptionID) {
		return nil, fmt.Errorf("list dead letters of %q: %w", subscriptionID, ErrNotFound)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return nil, err
	}
	rows, err := b.store.ListDeadLetters(ctx, b.pool, subscriptionID, options.Offset, options.Limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters of %q: %w", subscriptionID, err)
	}
	letters := make([]DeadLetter, len(rows))
	for i, row := range rows {
		letters[i] = DeadLetter{
			Message: Message{
				Delivery:       Delivery{newID(row.Xid, row.Seq), row.Attempts},
				SubscriptionID: subscriptionID,
				Payload:        json.RawMessage(row.Payload),
				CreatedAt:      row.CreatedAt.UTC(),
			},
			DeadAt: row.DeadAt.UTC(),
		}
		if row.LastError != nil {
			letters[i].LastError = *row.LastError
		}
		if err := letters[i].decodeAttributes(row.Attributes); err != nil {
			return nil, err
		}
	}
	return letters, nil
}

// Reprocess takes messages out of the dead letter queue: they are delivered again, at once, and their attempts begin anew.
// Their ids stay the same. It returns how many: messages that are not dead letters of this subscription are passed over. It
// takes up to 10,000 ids. When ctx is cancelled, it may have happened all the same.
//
// It returns ErrNotFound if there is no such subscription and an InvalidError for too many ids.
func (b *Broker) Reprocess(ctx context.Context, subscriptionID string, ids []ID) (int, error) {
	n, err := b.change(ctx, b.pool, Operation{Kind: OpReprocess, SubscriptionID: subscriptionID}, deliveriesOf(ids), b.store.Reprocess)
	if n > 0 {
		b.changed(subscriptionID)
	}
	return n, err
}

// Purge removes messages from the dead letter queue for good, and else is as Reprocess.
func (b *Broker) Purge(ctx context.Context, subscriptionID string, ids []ID) (int, error) {
	return b.change(ctx, b.pool, Operation{Kind: OpPurge, SubscriptionID: subscriptionID}, deliveriesOf(ids), b.store.Purge)
}
