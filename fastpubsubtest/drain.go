package fastpubsubtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store"
)

// DrainOptions say how far [Kit.Drain] goes. The zero DrainOptions are good ones.
type DrainOptions struct {
	// Timeout is how long it goes on at most, by the real time. Default 30 seconds.
	Timeout time.Duration
	// MaxAdvance is how far it moves the clock at most. Default 24 hours.
	MaxAdvance time.Duration
	// MayLeave makes it no failure if messages are left at these bounds: see [Drained].Left.
	MayLeave bool
	// Fault says what goes wrong after the handler has had a message. Default nothing.
	Fault func(fastpubsub.Message) Fault
}

// Drained is what [Kit.Drain] did.
type Drained struct {
	// Calls are those of the handler, in their order.
	Calls []Call
	// Acked is how many messages have been acked meanwhile.
	Acked int
	// DeadLetters are those that have become dead letters meanwhile, the first first.
	DeadLetters []fastpubsub.DeadLetter
	// Left is how many messages wait, or are with a consumer. It is zero but with MayLeave.
	Left int
	// Advanced is how far the clock was moved.
	Advanced time.Duration
}

// Drain gives the messages of a subscription to a handler by [fastpubsub.Broker.Receive], one after the other, until there are none.
// Where the next one waits for its backoff, or for somebody's ack deadline, it moves the clock there, as [Kit.Advance] does,
// and with that the time of all other subscriptions. So nobody else should be consuming meanwhile: their ack deadlines pass.
//
// It ends the test if messages are left when options.Timeout is over or the clock was moved as far as it may be, and says what
// they wait for and what the handler has returned; or if there is no such subscription.
func (k *Kit) Drain(tb testing.TB, subscriptionID string, handle fastpubsub.Handler, options DrainOptions) Drained {
	tb.Helper()
	drained, err := k.drain(tb.Context(), subscriptionID, options, func(ctx context.Context, id string, c *calls) error {
		return k.Broker.Receive(ctx, id, c.handler(handle), c.options)
	})
	if err != nil {
		tb.Fatalf("Drain: %v", err)
	}
	return drained
}

// DrainTx is Drain by [fastpubsub.Broker.ReceiveTx].
func (k *Kit) DrainTx(tb testing.TB, subscriptionID string, handle fastpubsub.TxHandler, options DrainOptions) Drained {
	tb.Helper()
	drained, err := k.drain(tb.Context(), subscriptionID, options, func(ctx context.Context, id string, c *calls) error {
		return k.Broker.ReceiveTx(ctx, id, c.txHandler(handle), c.options)
	})
	if err != nil {
		tb.Fatalf("DrainTx: %v", err)
	}
	return drained
}

// unknownStep is how far the clock goes where something waits and it is not known for what: the engine finds what it has passed
// over when so much time has gone by.
const unknownStep = 10 * time.Second

func (k *Kit) drain(ctx context.Context, id string, options DrainOptions, receive receiveFunc) (Drained, error) {
	var d Drained
	if options.Timeout < 0 || options.MaxAdvance < 0 {
		return d, errors.New("DrainOptions.Timeout and MaxAdvance must not be negative")
	}
	if options.Timeout == 0 {
		options.Timeout = 30 * time.Second
	}
	if options.MaxAdvance == 0 {
		options.MaxAdvance = 24 * time.Hour
	}
	before, err := k.Broker.Metrics(ctx, id)
	if err != nil {
		return d, err
	}
	dead, err := k.deadLetters(ctx, id)
	if err != nil {
		return d, err
	}
	wasDead := map[fastpubsub.ID]time.Time{}
	for _, letter := range dead {
		wasDead[letter.ID] = letter.DeadAt
	}

	c := newCalls(options.Fault, nil)
	bounded, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()
	m, bound, err := k.drainUntil(bounded, id, options, c, receive, &d)
	if bounded.Err() != nil && ctx.Err() == nil { // whatever that made fail
		bound = fmt.Sprintf("after %v", options.Timeout)
		m, err = k.Broker.Metrics(ctx, id)
	}
	var bad error
	d.Calls, bad = c.soFar()
	if err = errors.Join(err, bad); err != nil {
		return d, err
	}

	d.Acked, d.Left = int(m.Acked-before.Acked), int(m.Available+m.Delivered)
	if dead, err = k.deadLetters(ctx, id); err != nil {
		return d, err
	}
	for _, letter := range dead {
		if at, ok := wasDead[letter.ID]; !ok || !at.Equal(letter.DeadAt) {
			d.DeadLetters = append(d.DeadLetters, letter)
		}
	}
	if d.Left > 0 && !options.MayLeave {
		return d, errors.New(d.report(id, bound, m))
	}
	return d, nil
}

// drainUntil drains until there is nothing left or the clock may not be moved on, and says which bound that was.
func (k *Kit) drainUntil(ctx context.Context, id string, options DrainOptions, c *calls, receive receiveFunc, d *Drained) (fastpubsub.Metrics, string, error) {
	for {
		look, err := k.look(ctx, id)
		if err != nil {
			return fastpubsub.Metrics{}, "", err
		}
		if look.Ready {
			if err := k.drainReady(ctx, id, c, receive); err != nil {
				return fastpubsub.Metrics{}, "", err
			}
			continue
		}
		m, err := k.Broker.Metrics(ctx, id)
		if err != nil || m.Available+m.Delivered == 0 {
			return m, "", err
		}
		step := unknownStep
		if look.DueInSeconds != nil {
			step = time.Duration(math.Ceil(*look.DueInSeconds*1e6)) * time.Microsecond
		}
		if d.Advanced+step > options.MaxAdvance {
			return m, fmt.Sprintf("when the clock would have moved on by more than %v", options.MaxAdvance), nil
		}
		if err := k.advance(ctx, step); err != nil {
			return m, "", err
		}
		d.Advanced += step
	}
}

// look says whether a subscription has something to hand out now, or when. It does not see what Receive holds.
func (k *Kit) look(ctx context.Context, id string) (store.Look, error) {
	looks, err := k.store.Look(ctx, k.Pool, []string{id})
	if err == nil && len(looks) == 0 {
		err = fmt.Errorf("subscription %q: %w", id, fastpubsub.ErrNotFound)
	}
	if err != nil {
		return store.Look{}, err
	}
	return looks[0], nil
}

const lookEvery = 5 * time.Millisecond

// drainReady handles what is ready now.
func (k *Kit) drainReady(ctx context.Context, id string, c *calls, receive receiveFunc) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- receive(ctx, id, c) }()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return errors.Join(err, ctx.Err())
		case <-tick.C:
		}
		if c.busy() {
			continue
		}
		look, err := k.look(ctx, id)
		if err == nil && look.Ready {
			continue
		}
		// Perhaps something is on its way to the handler. It is given back then, which does not count, and the next round has it.
		stop()
		return errors.Join(err, <-done)
	}
}

// deadLetters returns all of them.
func (k *Kit) deadLetters(ctx context.Context, id string) ([]fastpubsub.DeadLetter, error) {
	var all []fastpubsub.DeadLetter
	for {
		letters, err := k.Broker.DeadLetters(ctx, id, fastpubsub.ListOptions{Offset: len(all), Limit: 1000})
		if err != nil || len(letters) == 0 {
			return all, err
		}
		all = append(all, letters...)
	}
}

// report says what is left.
func (d *Drained) report(id, bound string, m fastpubsub.Metrics) string {
	const shown = 10 // calls
	var text strings.Builder
	fmt.Fprintf(&text, "subscription %q still has %d messages %s: %d wait for their time, %d are ready, %d are with a consumer or in a transaction\n",
		id, d.Left, bound, m.Delayed, m.Available-m.Delayed, m.Delivered)
	fmt.Fprintf(&text, "%d were acked and %d became dead letters, in %d calls of the handler", d.Acked, len(d.DeadLetters), len(d.Calls))
	if len(d.Calls) > shown {
		fmt.Fprintf(&text, ", of which these are the last")
	}
	text.WriteString(":")
	if len(d.Calls) == 0 {
		text.WriteString(" none")
	}
	for _, call := range d.Calls[max(0, len(d.Calls)-shown):] {
		fmt.Fprintf(&text, "\n  %v attempt %d: ", call.Message.ID, call.Message.DeliveryAttempts)
		if call.Err == nil {
			text.WriteString("no error")
		} else {
			text.WriteString(cut(call.Err.Error()))
		}
		if call.Fault != NoFault {
			fmt.Fprintf(&text, " (%s)", call.Fault)
		}
	}
	return text.String()
}
