package crashtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// A Worker does to messages all that consumers do.
type Worker struct {
	Name         string
	Broker       *fastpubsub.Broker
	Subscription string
	Rand         *rand.Rand
	Record       Recorder

	// AckBy acks in place of Broker.Ack.
	AckBy func(ctx context.Context, msgs []Message) (int, error)
	// Stall is how long it now and then forgets about messages before it does something about them. Default never.
	Stall time.Duration
	// Bury makes it turn messages into dead letters, too.
	Bury bool

	kept []Message // extended, and acked later
}

// Step takes some messages and acks, nacks, extends, gives back or forgets each.
func (w *Worker) Step(ctx context.Context) error {
	msgs, err := w.Record.Consume(ctx, w.Broker, w.Subscription, fastpubsub.ConsumeOptions{
		Consumer:    w.Name,
		Max:         1 + w.Rand.IntN(10),
		Wait:        20 * time.Millisecond,
		AckDeadline: time.Duration(w.Rand.IntN(3)) * time.Second,
		Single:      w.Rand.IntN(4) == 0,
	})
	if err != nil && !errors.Is(err, fastpubsub.ErrBusy) {
		return err
	}
	if w.Stall > 0 && len(msgs) > 0 && w.Rand.IntN(30) == 0 {
		select {
		case <-time.After(time.Duration(w.Rand.Int64N(int64(w.Stall)))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	const (
		ack = iota
		nack
		nackDelayed
		nackAtOnce
		extend
		giveBack
		forget
		bury
	)
	var groups [bury + 1][]Message
	weights := []int{ack, ack, ack, ack, ack, ack, nack, nackDelayed, nackAtOnce, extend, giveBack, forget}
	if w.Bury {
		weights = slices.Concat(weights, weights[:6], []int{bury}) // much gets done, too
	}
	for _, m := range msgs {
		i := weights[w.Rand.IntN(len(weights))]
		groups[i] = append(groups[i], m)
	}
	if len(w.kept) > 0 && w.Rand.IntN(2) == 0 {
		groups[ack] = append(groups[ack], w.kept...)
		w.kept = nil
	}
	w.kept = append(w.kept, groups[extend]...)
	for _, action := range w.Rand.Perm(len(groups)) {
		msgs := groups[action]
		if len(msgs) == 0 {
			continue
		}
		var err error
		switch action {
		case ack:
			for msgs := range slices.Chunk(msgs, 1+w.Rand.IntN(len(msgs))) {
				if err = w.ack(ctx, msgs); err != nil {
					break
				}
			}
		case nack:
			err = w.nack(ctx, Nack, msgs, fastpubsub.NackOptions{Error: w.Name})
		case nackDelayed:
			err = w.nack(ctx, Nack, msgs, fastpubsub.NackOptions{Delay: 2 * time.Second})
		case nackAtOnce:
			err = w.nack(ctx, Nack, msgs, fastpubsub.NackOptions{Immediate: true})
		case bury:
			err = w.nack(ctx, Bury, msgs, fastpubsub.NackOptions{DeadLetter: true})
		case extend:
			err = w.extend(ctx, Extend, msgs, 3*time.Second)
		case giveBack:
			err = w.extend(ctx, GiveBack, msgs, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *Worker) ack(ctx context.Context, msgs []Message) error {
	if w.AckBy == nil {
		return w.Record.Ack(ctx, w.Broker, w.Subscription, w.Name, msgs)
	}
	return w.Record.Change(Ack, w.Subscription, w.Name, msgs, func() (int, error) { return w.AckBy(ctx, msgs) })
}

func (w *Worker) nack(ctx context.Context, call Call, msgs []Message, options fastpubsub.NackOptions) error {
	return w.Record.Change(call, w.Subscription, w.Name, msgs, func() (int, error) {
		return w.Broker.Nack(ctx, w.Subscription, deliveries(msgs), options)
	})
}

func (w *Worker) extend(ctx context.Context, call Call, msgs []Message, deadline time.Duration) error {
	return w.Record.Change(call, w.Subscription, w.Name, msgs, func() (int, error) {
		return w.Broker.Extend(ctx, w.Subscription, deliveries(msgs), deadline)
	})
}

func deliveries(msgs []Message) []fastpubsub.Delivery {
	all := make([]fastpubsub.Delivery, len(msgs))
	for i, m := range msgs {
		all[i] = fastpubsub.Delivery{ID: m.ID, DeliveryAttempts: m.Attempts}
	}
	return all
}
