package fastpubsubtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/testdb"
)

// A State is what became of a message that a handler had.
type State string

const (
	// Acked is done.
	Acked State = "acked"
	// Nacked comes again after Delay, and the delivery counts as an attempt.
	Nacked State = "nacked"
	// Snoozed comes again after Delay, and the delivery does not count: see [fastpubsub.Snooze].
	Snoozed State = "snoozed"
	// DeadLettered does not come again: its attempts were used up, or the error was [fastpubsub.Permanent].
	DeadLettered State = "dead-lettered"
	// Unsettled has neither been acked nor nacked, because of a [Fault]. It comes again when its ack deadline has passed.
	Unsettled State = "unsettled"
)

// An Outcome is what became of a message, as the database has it.
type Outcome struct {
	State State
	// Delay is how long it waits until it comes again, by the schema's clock, in whole milliseconds. For Unsettled it is the
	// rest of the ack deadline.
	Delay time.Duration
	// Attempts is how many deliveries count so far.
	Attempts int
	// LastError is the text that was kept of the last error; empty if there is none, and when it is acked.
	LastError string
	// Err is what the handler returned; of a panic, what it said.
	Err error
	// Message is what the handler got.
	Message fastpubsub.Message
}

// HandleOptions say how a message is delivered. The zero HandleOptions are good ones.
type HandleOptions struct {
	// Subscription is the id of a subscription whose settings hold: attempts, backoff and ack deadline. It must be there. Default
	// the settings of a subscription that leaves them out.
	Subscription string
	// Attempt is the number of the delivery that the handler gets, from 1 to the subscription's MaxDeliveryAttempts. Those before it have
	// failed. Default 1.
	Attempt int
	// Fault is what goes wrong after the handler. Default nothing.
	Fault Fault
}

// Handle publishes a message, delivers it to a handler by [fastpubsub.Broker.Receive], once, and says what became of it. It
// returns when the handler has, however long that takes.
//
// All happens in a topic and a subscription that are there for this call alone: others get nothing of it, and the message's
// SubscriptionID is not options.Subscription. A handler that calls FailNow fails the test, and the message is nacked.
//
// It ends the test if the message cannot be published, or options are out of range.
func (k *Kit) Handle(tb testing.TB, handle fastpubsub.Handler, msg fastpubsub.NewMessage, options HandleOptions) Outcome {
	tb.Helper()
	outcome, err := k.handle(tb.Context(), msg, options, func(ctx context.Context, id string, c *calls) error {
		return k.Broker.Receive(ctx, id, c.handler(handle), c.options)
	})
	if err != nil {
		tb.Fatalf("Handle: %v", err)
	}
	return outcome
}

// HandleTx is Handle by [fastpubsub.Broker.ReceiveTx].
func (k *Kit) HandleTx(tb testing.TB, handle fastpubsub.TxHandler, msg fastpubsub.NewMessage, options HandleOptions) Outcome {
	tb.Helper()
	outcome, err := k.handle(tb.Context(), msg, options, func(ctx context.Context, id string, c *calls) error {
		return k.Broker.ReceiveTx(ctx, id, c.txHandler(handle), c.options)
	})
	if err != nil {
		tb.Fatalf("HandleTx: %v", err)
	}
	return outcome
}

type receiveFunc func(ctx context.Context, subscriptionID string, c *calls) error

func (k *Kit) handle(ctx context.Context, msg fastpubsub.NewMessage, options HandleOptions, receive receiveFunc) (_ Outcome, err error) {
	if err := checkFault(options.Fault); err != nil {
		return Outcome{}, fmt.Errorf("HandleOptions.%w", err)
	}
	var settings fastpubsub.SubscriptionSettings
	if options.Subscription != "" {
		sub, err := k.Broker.GetSubscription(ctx, options.Subscription)
		if err != nil {
			return Outcome{}, fmt.Errorf("HandleOptions.Subscription: %w", err)
		}
		settings = sub.SubscriptionSettings
	}
	id := "fastpubsubtest-" + rand.Text()
	if _, err := k.Broker.CreateTopic(ctx, id); err != nil {
		return Outcome{}, err
	}
	defer func() { err = errors.Join(err, k.Broker.DeleteTopic(context.WithoutCancel(ctx), id)) }()
	sub, err := k.Broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: id, TopicID: id, SubscriptionSettings: settings})
	if err != nil {
		return Outcome{}, err
	}
	if options.Attempt == 0 {
		options.Attempt = 1
	}
	if options.Attempt < 1 || options.Attempt > sub.MaxDeliveryAttempts {
		return Outcome{}, fmt.Errorf("HandleOptions.Attempt must be 1 to %d, the MaxDeliveryAttempts, not %d", sub.MaxDeliveryAttempts, options.Attempt)
	}
	if _, err := k.Broker.Publish(ctx, id, msg); err != nil {
		return Outcome{}, err
	}
	for range options.Attempt - 1 {
		if err := k.fail(ctx, id); err != nil {
			return Outcome{}, err
		}
	}

	receiving, stop := context.WithCancel(ctx)
	defer stop()
	// Receive takes nothing while the handler has the message, and nothing after stop.
	c := newCalls(func(fastpubsub.Message) Fault { return options.Fault }, stop)
	if err := receive(receiving, id, c); err != nil {
		return Outcome{}, err
	}
	all, _ := c.soFar()
	if len(all) == 0 {
		return Outcome{}, fmt.Errorf("the message was not delivered: %w", context.Cause(ctx))
	}
	outcome := Outcome{Err: all[0].Err, Message: all[0].Message}
	err = k.outcome(ctx, id, &outcome)
	return outcome, err
}

// fail is a delivery that fails.
func (k *Kit) fail(ctx context.Context, id string) error {
	msgs, err := k.Broker.Consume(ctx, id, fastpubsub.ConsumeOptions{Consumer: "fastpubsubtest", Max: 1, Wait: waitTimeout})
	if err != nil {
		return err
	}
	if len(msgs) == 0 {
		return fmt.Errorf("the message was not delivered within %v", waitTimeout)
	}
	_, err = k.Broker.Nack(ctx, id, []fastpubsub.Delivery{msgs[0].Delivery}, fastpubsub.NackOptions{Immediate: true, Error: "an earlier attempt failed"})
	return err
}

// outcomeOf finds the only message of a subscription that was taken: in deliveries, or in a lease that somebody still has, or
// nowhere, because it is done.
const outcomeOf = `
SELECT o.state, o.attempts, (extract(epoch FROM o.until - {schema}.clock()) * 1000000)::bigint, o.last_error
FROM {schema}.subscriptions s
CROSS JOIN LATERAL (
    SELECT d.state::text, d.attempts, d.next_at, d.last_error FROM {schema}.deliveries d WHERE d.sub = s.num
    UNION ALL
    SELECT 'leased', 1, l.deadline, NULL FROM {schema}.leases l WHERE l.sub = s.num AND NOT isempty(l.remaining)
) o(state, attempts, until, last_error)
WHERE s.id = $1`

func (k *Kit) outcome(ctx context.Context, id string, o *Outcome) error {
	var state string
	var microseconds int64
	var lastError *string
	err := k.Pool.QueryRow(ctx, testdb.Fill(outcomeOf, k.Schema), id).Scan(&state, &o.Attempts, &microseconds, &lastError)
	if errors.Is(err, pgx.ErrNoRows) {
		o.State, o.Attempts = Acked, o.Message.DeliveryAttempts
		return nil
	}
	if err != nil {
		return err
	}
	if lastError != nil && state != "acked" {
		o.LastError = *lastError
	}
	switch state {
	case "acked":
		o.State = Acked
		return nil
	case "dead":
		o.State = DeadLettered
		return nil
	case "leased":
		o.State = Unsettled
	case "available", "expired":
		o.State = Nacked
		if o.Attempts < o.Message.DeliveryAttempts {
			o.State = Snoozed
		}
	default:
		return fmt.Errorf("the message is in a state that is not known: %q", state)
	}
	o.Delay = max(0, time.Duration(microseconds)*time.Microsecond).Round(time.Millisecond)
	return nil
}
