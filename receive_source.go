package fastpubsub

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/fastpubsub/fastpubsub/store"
)

// A Source is where [ReceiveFrom] has messages from: a [Broker], or what speaks to one, as the client of the REST API does. Its
// methods are safe for concurrent use and do what Broker's do, with the same errors. Consume may return fewer messages than
// asked for, and must give back, or let come back after the ack deadline, what it took when ctx ended; Ack, Nack and Extend
// take as many messages as those of Broker.
type Source interface {
	GetSubscription(ctx context.Context, id string) (Subscription, error)
	Consume(ctx context.Context, subscriptionID string, options ConsumeOptions) ([]Message, error)
	Ack(ctx context.Context, subscriptionID string, ids []ID) (int, error)
	Nack(ctx context.Context, subscriptionID string, deliveries []Delivery, options NackOptions) (int, error)
	Extend(ctx context.Context, subscriptionID string, deliveries []Delivery, ackDeadline time.Duration) (int, error)
}

// A supply is a Source as a receiver needs it.
type supply interface {
	Source
	defaultLogger() *slog.Logger
	seenBy() hooks
	join(subscriptionID string) taker
	// nackAll nacks all, or returns an error and leaves in nacks what has to be tried again.
	nackAll(ctx context.Context, subscriptionID string, nacks map[nackKind][]Delivery) error
}

// A taker takes messages for one receiver, until it leaves.
type taker interface {
	// take takes messages, or waits until there may be some, or ctx ends. It returns the time from which the ack deadline counts, at
	// the earliest. claims is for calls that are not to be cancelled as long as it can be helped: what they took would be lost to
	// the others until its ack deadline.
	take(ctx, claims context.Context, options ConsumeOptions) (msgs []Message, since time.Time, err error)
	// rest waits after an error, for d at most, and less if there are signs that the database is there again.
	rest(ctx context.Context, d time.Duration)
	leave()
}

func supplyOf(source Source) supply {
	if b, ok := source.(*Broker); ok {
		return brokerSupply{b}
	}
	return sourceSupply{source}
}

type brokerSupply struct{ *Broker }

func (s brokerSupply) defaultLogger() *slog.Logger { return s.logger }

func (s brokerSupply) seenBy() hooks { return s.hooks }

// After a call that found little, or left nothing, who goes on taking leaves the server alone for as long as that took, since all
// that is published meanwhile costs it as much as one message; but for breath at most. Where several calls in a row take more than
// busier times as long as the fastest did, the server has more to do than it can: then for longer, up to longestBreath.
const (
	breath        = 5 * time.Millisecond
	longestBreath = 8 * breath
	busier        = 2
)

func (s brokerSupply) join(subscriptionID string) taker {
	return &brokerTaker{broker: s.Broker, id: subscriptionID, member: s.waits.join(subscriptionID)}
}

type brokerTaker struct {
	broker *Broker
	id     string // of the subscription
	*member

	pause     time.Duration // before the next claim, for something to be there
	notBefore time.Time     // the next claim
	// Of the calls that found something.
	recent  [4]time.Duration // how long they took
	calls   int
	fastest time.Duration // it forgets slowly
}

func (t *brokerTaker) take(ctx, claims context.Context, options ConsumeOptions) ([]Message, time.Time, error) {
	claim, err := options.check()
	if err != nil {
		return nil, time.Time{}, err
	}
	if t.pause > 0 {
		_, _ = t.wait(ctx, claim.Max, t.pause)
		_ = sleep(ctx, time.Until(t.notBefore))
		t.pause = 0
		return nil, time.Time{}, nil // meanwhile more may be wanted, or nothing
	}
	claim.SubscriptionID = t.id
	began := time.Now()
	msgs, left, err := t.broker.claim(claims, claim)
	if err != nil || left == store.LeftMore {
		return nil, began, err
	}
	t.claimed(len(msgs), claim.Max)
	switch {
	case len(msgs) == 0 || left == store.LeftNothing:
		t.pause = time.Hour
	case len(msgs) < claim.Max/2: // what was published behind an open transaction is taken by the next call
		t.pause = breath
	}
	if len(msgs) > 0 {
		now := time.Now()
		t.notBefore = now.Add(t.breathe(now.Sub(began)))
	}
	return msgs, began, nil
}

// breathe says for how long to leave the server alone after a call that took so long.
func (t *brokerTaker) breathe(took time.Duration) time.Duration {
	took = max(took, time.Microsecond)
	t.recent[t.calls%len(t.recent)] = took
	t.calls++
	if t.fastest == 0 || took < t.fastest {
		t.fastest = took
	} else {
		t.fastest += t.fastest/1024 + 1
	}
	lately := slices.Min(t.recent[:min(t.calls, len(t.recent))])
	busy := max(float64(lately)/float64(busier*t.fastest), 1)
	return min(time.Duration(float64(min(took, breath))*busy), longestBreath)
}

// rest ends early when somebody here has published, but not too often: who can publish need not be able to consume.
func (t *brokerTaker) rest(ctx context.Context, d time.Duration) {
	if sleep(ctx, d/8) == nil {
		_, _ = t.wait(ctx, 1, d-d/8)
	}
}

// nackAll nacks all kinds in one transaction. Each is an operation.
func (s brokerSupply) nackAll(ctx context.Context, subscriptionID string, nacks map[nackKind][]Delivery) error {
	type group struct {
		store.Nack
		kind nackKind
	}
	groups := make([]group, 0, len(nacks))
	for kind, deliveries := range nacks {
		n, err := kind.check()
		if err != nil {
			return err
		}
		n.Ranges = ranges(deliveries)
		groups = append(groups, group{n, kind})
	}
	slices.SortFunc(groups, func(a, b group) int { return compareRanges(a.Ranges[0], b.Ranges[0]) })
	all := make([]store.Nack, len(groups))
	ends := make([]func(count int, err error), len(groups))
	for i, g := range groups {
		all[i] = g.Nack
		ctx, op := s.hooks.start(ctx, Operation{Kind: OpNack, SubscriptionID: subscriptionID, Deliveries: nacks[g.kind], dies: g.kind.dies})
		ends[i] = func(count int, err error) { s.hooks.end(ctx, op, count, err) }
	}
	counts, err := s.store.NackAll(ctx, s.pool, subscriptionID, all)
	for i, end := range ends {
		end(counts[i], err)
	}
	if err != nil {
		return err
	}
	s.changed(subscriptionID)
	return nil
}

type sourceSupply struct{ Source }

func (sourceSupply) defaultLogger() *slog.Logger { return slog.Default() }

func (sourceSupply) seenBy() hooks { return hooks{} } // it has its own, if any

// longestSourceWait bounds how long a call of Consume waits: the time counts against the ack deadline, since nobody knows when
// in it the messages were taken.
const longestSourceWait = 20 * time.Second

func (s sourceSupply) join(subscriptionID string) taker {
	return &sourceTaker{Source: s.Source, id: subscriptionID}
}

type sourceTaker struct {
	Source
	id     string // of the subscription
	little bool   // was there, the last time
	empty  bool   // nothing was
}

func (t *sourceTaker) take(ctx, _ context.Context, options ConsumeOptions) ([]Message, time.Time, error) {
	if t.little {
		wait := min(options.AckDeadline/4, longestSourceWait)
		if options.Wait = wait.Truncate(time.Second); options.Wait == 0 && t.empty {
			t.rest(ctx, wait)
		}
	}
	began := time.Now()
	msgs, err := t.Consume(ctx, t.id, options)
	t.little, t.empty = err == nil && len(msgs) < (options.Max+1)/2, err == nil && len(msgs) == 0
	return msgs, began, err
}

func (t *sourceTaker) rest(ctx context.Context, d time.Duration) { _ = sleep(ctx, d) }

func (t *sourceTaker) leave() {}

func (s sourceSupply) nackAll(ctx context.Context, subscriptionID string, nacks map[nackKind][]Delivery) error {
	var all error
	for kind, deliveries := range nacks {
		if _, err := s.Nack(ctx, subscriptionID, deliveries, kind.NackOptions); err != nil {
			all = errors.Join(all, err)
			continue
		}
		delete(nacks, kind)
	}
	return all
}
