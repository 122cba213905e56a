package fastpubsub

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/idrule"
	"github.com/fastpubsub/fastpubsub/store"
)

// A Subscription gets the messages of one topic.
type Subscription struct {
	ID      string // as a topic's
	TopicID string
	Filter  Filter // the zero Filter lets everything through
	SubscriptionSettings
	CreatedAt time.Time // UTC; set by CreateSubscription
}

// SubscriptionSettings are what a subscription can leave to [Config.SubscriptionDefaults]: zero means the default.
// Durations are whole seconds.
type SubscriptionSettings struct {
	// MaxDeliveryAttempts is how often a message is delivered before it becomes a dead letter. At least 1.
	MaxDeliveryAttempts int
	// BackoffMin is how long a message waits after its first failure. The wait doubles with each, up to BackoffMax. At
	// least a second.
	BackoffMin time.Duration
	BackoffMax time.Duration
	// AckDeadline is how long a consumer may keep a message before it is delivered again, with no backoff. 1 second to 12
	// hours.
	AckDeadline time.Duration
}

// or fills in what is zero.
func (s SubscriptionSettings) or(defaults SubscriptionSettings) SubscriptionSettings {
	if s.MaxDeliveryAttempts == 0 {
		s.MaxDeliveryAttempts = defaults.MaxDeliveryAttempts
	}
	if s.BackoffMin == 0 {
		s.BackoffMin = defaults.BackoffMin
	}
	if s.BackoffMax == 0 {
		s.BackoffMax = defaults.BackoffMax
	}
	if s.AckDeadline == 0 {
		s.AckDeadline = defaults.AckDeadline
	}
	return s
}

const maxAckDeadlineSeconds = 12 * 60 * 60

func (s SubscriptionSettings) check(p *problems) {
	checkRange(p, "max_delivery_attempts", s.MaxDeliveryAttempts, 1, math.MaxInt32)
	checkSeconds(p, "backoff_min_seconds", s.BackoffMin, math.MaxInt32)
	if checkSeconds(p, "backoff_max_seconds", s.BackoffMax, math.MaxInt32) && s.BackoffMax < s.BackoffMin {
		p.add("backoff_max_seconds", "greater_than_equal", "must be at least backoff_min_seconds, %d, not %d", seconds(s.BackoffMin), seconds(s.BackoffMax))
	}
	checkSeconds(p, "ack_deadline_seconds", s.AckDeadline, maxAckDeadlineSeconds)
}

func checkSeconds(p *problems, field string, d time.Duration, highest int) bool {
	before := len(*p)
	if d%time.Second != 0 {
		p.add(field, "value_error", "must be whole seconds, not %v", d)
	} else {
		checkRange(p, field, seconds(d), 1, highest)
	}
	return len(*p) == before
}

func seconds(d time.Duration) int { return int(d / time.Second) }

// CreateSubscription creates a subscription, which gets what is committed after it exists, and returns it with what it
// left out filled in. It returns ErrExists if the id is taken, ErrNotFound if there is no such topic, and an
// InvalidError with all that is wrong. When ctx is cancelled, it may have been created all the same.
func (b *Broker) CreateSubscription(ctx context.Context, sub Subscription) (Subscription, error) {
	sub.SubscriptionSettings = sub.SubscriptionSettings.or(b.defaults)
	var p problems
	checkID(&p, "id", sub.ID)
	checkID(&p, "topic_id", sub.TopicID)
	sub.SubscriptionSettings.check(&p)
	if err := p.err(); err != nil {
		return Subscription{}, fmt.Errorf("create subscription: %w", err)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Subscription{}, err
	}
	var text, path *string // NULL for none
	if !sub.Filter.IsZero() {
		s := sub.Filter.String()
		text = &s
	}
	if s := sub.Filter.jsonpath(); s != "" {
		path = &s
	}
	row, err := b.store.CreateSubscription(ctx, b.pool, store.Subscription{
		ID:                  sub.ID,
		TopicID:             sub.TopicID,
		Filter:              text,
		MaxDeliveryAttempts: sub.MaxDeliveryAttempts,
		BackoffMinSeconds:   seconds(sub.BackoffMin),
		BackoffMaxSeconds:   seconds(sub.BackoffMax),
		AckDeadlineSeconds:  seconds(sub.AckDeadline),
	}, path)
	if err != nil {
		return Subscription{}, fmt.Errorf("create subscription %q: %w", sub.ID, err)
	}
	return subscriptionFromRow(row)
}

func subscriptionFromRow(row store.Subscription) (Subscription, error) {
	sub := Subscription{
		ID:      row.ID,
		TopicID: row.TopicID,
		SubscriptionSettings: SubscriptionSettings{
			MaxDeliveryAttempts: row.MaxDeliveryAttempts,
			BackoffMin:          time.Duration(row.BackoffMinSeconds) * time.Second,
			BackoffMax:          time.Duration(row.BackoffMaxSeconds) * time.Second,
			AckDeadline:         time.Duration(row.AckDeadlineSeconds) * time.Second,
		},
		CreatedAt: row.CreatedAt.UTC(),
	}
	if row.Filter != nil {
		filter, err := ParseFilter([]byte(*row.Filter))
		if err != nil {
			return Subscription{}, fmt.Errorf("subscription %q: stored filter: %w", row.ID, err)
		}
		sub.Filter = filter
	}
	return sub, nil
}

// GetSubscription returns ErrNotFound if there is no such subscription.
func (b *Broker) GetSubscription(ctx context.Context, id string) (Subscription, error) {
	if !idrule.Matches(id) { // Postgres would refuse some as text
		return Subscription{}, fmt.Errorf("get subscription %q: %w", id, ErrNotFound)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Subscription{}, err
	}
	row, err := b.store.GetSubscription(ctx, b.pool, id)
	if err != nil {
		return Subscription{}, fmt.Errorf("get subscription %q: %w", id, err)
	}
	return subscriptionFromRow(row)
}

// ListSubscriptions returns subscriptions in the order of their ids, bytewise. It returns an InvalidError for options
// out of range.
func (b *Broker) ListSubscriptions(ctx context.Context, options ListOptions) ([]Subscription, error) {
	if err := options.check(); err != nil {
		return nil, fmt.Errorf("list subscriptions: %w", err)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return nil, err
	}
	rows, err := b.store.ListSubscriptions(ctx, b.pool, options.Offset, options.Limit)
	if err != nil {
		return nil, fmt.Errorf("list subscriptions: %w", err)
	}
	subs := make([]Subscription, len(rows))
	for i, row := range rows {
		if subs[i], err = subscriptionFromRow(row); err != nil {
			return nil, err
		}
	}
	return subs, nil
}

// DeleteSubscription deletes a subscription and all that it has not delivered. It waits for nobody; acks of what was
// delivered count nothing afterwards. It returns ErrNotFound if there is no such subscription.
func (b *Broker) DeleteSubscription(ctx context.Context, id string) error {
	if !idrule.Matches(id) { // Postgres would refuse some as text
		return fmt.Errorf("delete subscription %q: %w", id, ErrNotFound)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return err
	}
	if err := b.store.DeleteSubscription(ctx, b.pool, id); err != nil {
		return fmt.Errorf("delete subscription %q: %w", id, err)
	}
	return nil
}

// Metrics are the counts of a subscription's messages, all of one moment. Each message that the subscription has ever got is
// in one of Available, Delivered, Acked and DeadLetters, unless it was purged.
type Metrics struct {
	Available   int64 // wait to be delivered, in the log or again
	Delayed     int64 // those of Available that wait for their backoff
	Delivered   int64 // are with a consumer, or their ack deadline has passed and nobody has consumed since
	Acked       int64 // in all, ever; it never goes down
	DeadLetters int64 // wait in the dead letter queue

	// OldestUnackedAge is the age of the oldest message that is neither acked nor a dead letter, zero if there is none. Of
	// messages that were published together the age is that of all of them.
	OldestUnackedAge time.Duration

	// Estimated says that Available is an estimate: a filter must be evaluated on each message that waits, and that is done
	// for a quarter of a second. What was not reached is taken to match as often as what was, and OldestUnackedAge is that
	// of the part that was looked at.
	Estimated bool
}

// Metrics returns the counts of a subscription. It takes longer the more is waiting, some 0.2 µs for each record batch, and
// a filter costs 1 µs a message, up to the limit of [Metrics].Estimated. Rows of their own are counted one by one, since all
// counts are exact and of one moment: messages that failed, were extended or moved out of the log, and dead letters, some 0.3 µs
// each: 0.3 seconds for a million. It holds nobody up meanwhile. It returns ErrNotFound if there is no such subscription.
func (b *Broker) Metrics(ctx context.Context, subscriptionID string) (Metrics, error) {
	if !idrule.Matches(subscriptionID) {
		return Metrics{}, fmt.Errorf("metrics of %q: %w", subscriptionID, ErrNotFound)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Metrics{}, err
	}
	row, err := b.store.Metrics(ctx, b.pool, subscriptionID)
	if err != nil {
		return Metrics{}, fmt.Errorf("metrics of %q: %w", subscriptionID, err)
	}
	m := Metrics{
		Available:   row.Available,
		Delayed:     row.Delayed,
		Delivered:   row.Delivered,
		Acked:       row.Acked,
		DeadLetters: row.Dead,
		Estimated:   row.Estimated,
	}
	if row.OldestAt != nil {
		m.OldestUnackedAge = max(0, row.Now.Sub(*row.OldestAt))
	}
	return m, nil
}

// Stuck is what CleanupStuck did.
type Stuck struct {
	Released    int // messages that are delivered again
	DeadLetters int // messages whose attempts were used up
	Busy        int // subscriptions that others held for too long; what is left there waits for the next call

	More bool // time was over before all that had expired was ended
}

// orphansStep is how many rows of deleted subscriptions one statement removes.
const orphansStep = 1000

// CleanupStuck ends the leases whose ack deadlines have passed, in all subscriptions. Whoever consumes does so too, for that
// subscription; this is for those that nobody consumes from, so that their messages are counted as available and become dead
// letters when they should. It works in small steps that hold nobody up, and removes what deleted subscriptions have left.
// Any number of processes may call it at once. When ctx is cancelled, or an error comes, the steps so far stand.
func (b *Broker) CleanupStuck(ctx context.Context) (Stuck, error) {
	var stuck Stuck
	if err := b.ready(ctx, b.pool); err != nil {
		return stuck, err
	}
	ids, err := b.store.ListExpired(ctx, b.pool)
	if err != nil {
		return stuck, fmt.Errorf("cleanup of stuck messages: %w", err)
	}
	// What deleted subscriptions have left has its turns, too.
	steps := []step{{"deleted subscriptions", func(ctx context.Context) (more bool, err error) {
		n, err := b.store.RemoveOrphans(ctx, b.pool, orphansStep)
		return n == orphansStep, err
	}}}
	for _, id := range ids {
		steps = append(steps, subscriptionStep(id, func(ctx context.Context) (more bool, err error) {
			ctx, op := b.hooks.start(ctx, Operation{Kind: OpSweep, SubscriptionID: id})
			swept, err := b.store.Sweep(ctx, b.pool, id)
			if op != nil {
				op.DeadLetters = swept.Died
				b.hooks.end(ctx, op, swept.Expired+swept.Died, err)
			}
			if errors.Is(err, ErrBusy) {
				stuck.Busy++
			}
			stuck.Released += swept.Expired
			stuck.DeadLetters += swept.Died
			return swept.More, err
		}))
	}
	if stuck.More, err = b.newTurns().take(ctx, steps); err != nil {
		return stuck, fmt.Errorf("cleanup of stuck messages: %w", err)
	}
	return stuck, nil
}
