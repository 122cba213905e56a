package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
)

// The subscriptions that are there all the time.
var subscriptions = map[string]crashtest.Made{
	"all":      {Topic: "main", Attempts: 4},
	"some":     {Topic: "main", Attempts: 4, Kinds: []int{1, 3, 5}},
	"slow":     {Topic: "main", Attempts: 4}, // its consumers rest
	"received": {Topic: "main", Attempts: 4, Receives: true},
	"effects":  {Topic: "main", Attempts: 4, Receives: true, Effects: true},
	"other":    {Topic: "other", Attempts: 2},
	"sevens":   {Topic: "other", Attempts: 2, Kinds: []int{7}},
}

// effectsTable has what consumers of "effects" wrote in the transactions of their acks. Nothing keeps it from having
// an effect twice.
const effectsTable = "CREATE SCHEMA soak; CREATE TABLE soak.effects (sub text NOT NULL, n bigint NOT NULL)"

// start starts all that goes on in every process. It ends with ctx, and process.wg waits for it.
func (p *process) start(ctx context.Context) {
	p.wg.Go(func() { _ = p.broker.Run(ctx) })
	p.repeat(ctx, "throttle", func(rng *rand.Rand, _ string) error {
		pause(ctx, rng, time.Second)
		return p.throttle(ctx)
	})
	for i := range p.Publishers {
		p.repeat(ctx, fmt.Sprint("publisher ", i), func(rng *rand.Rand, caller string) error {
			topic := "main"
			if rng.IntN(4) == 0 {
				topic = "other"
			}
			return p.publish(ctx, rng, caller, topic)
		})
	}
	for sub, made := range subscriptions {
		for i := range p.Consumers {
			p.consume(ctx, fmt.Sprintf("consumer %d of %s", i, sub), sub, made)
		}
	}
	p.repeat(ctx, "receiver", func(rng *rand.Rand, caller string) error { return p.receive(ctx, rng, caller, "received") })
	p.repeat(ctx, "receiver in transactions", func(rng *rand.Rand, caller string) error {
		return p.receiveTx(ctx, rng, caller, "effects")
	})
}

// throttle lets publishers pause while consumers do not keep up.
func (p *process) throttle(ctx context.Context) error {
	behind := false
	for sub := range subscriptions {
		m, err := p.broker.Metrics(ctx, sub)
		if err != nil {
			return err
		}
		behind = behind || m.Available+m.Delivered > backlog
	}
	p.behind.Store(behind)
	return nil
}

// publish publishes some messages in one way of many.
func (p *process) publish(ctx context.Context, rng *rand.Rand, caller, topic string) error {
	n := 1 + rng.IntN(1+rng.IntN(40))
	from := int(p.next.Add(int64(n)) - int64(n))
	var err error
	switch rng.IntN(10) {
	default:
		err = p.record.Publish(ctx, p.broker, topic, caller, from, n)
	case 0, 1:
		err = p.record.PublishBy(topic, caller, from, n, func(msgs []fastpubsub.NewMessage) (ids []fastpubsub.ID, err error) {
			committing := false
			err = p.broker.InTx(ctx, pgx.TxOptions{}, func(tx pgx.Tx) error {
				ids, err = p.broker.PublishTx(ctx, tx, topic, msgs...)
				if err == nil && rng.IntN(3) == 0 {
					err = errRolledBack
				}
				committing = err == nil
				return err
			})
			if !committing {
				err = crashtest.Undone(err)
			}
			return ids, err
		})
	case 2, 3, 4:
		err = p.publishTx(ctx, rng, caller, topic, from, n)
	}
	// Twice the share, since a pause is half of that.
	pause(ctx, rng, 2*time.Second*time.Duration(10*p.Publishers)/time.Duration(p.Rate))
	for p.behind.Load() && ctx.Err() == nil {
		pause(ctx, rng, 200*time.Millisecond)
	}
	return err
}

// publishTx publishes in a transaction of any kind, which may stall, roll back, or lose its connection.
func (p *process) publishTx(ctx context.Context, rng *rand.Rand, caller, topic string, from, n int) error {
	pool := []*pgxpool.Pool{p.pool, p.lazy}[rng.IntN(2)]
	level := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}[rng.IntN(3)]
	return p.record.PublishBy(topic, caller, from, n, func(msgs []fastpubsub.NewMessage) (ids []fastpubsub.ID, err error) {
		err = inTx(ctx, pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
			for rest := msgs; len(rest) > 0; {
				k := 1 + rng.IntN(len(rest))
				some, err := p.broker.PublishTx(ctx, tx, topic, rest[:k]...)
				if err != nil {
					return err
				}
				ids, rest = append(ids, some...), rest[k:]
				if rng.IntN(4) == 0 {
					if err := p.publishInVain(ctx, caller, topic, tx); err != nil {
						return err
					}
				}
			}
			if rng.IntN(8) == 0 {
				pause(ctx, rng, 4*time.Second)
			}
			switch rng.IntN(12) {
			case 0:
				return errors.Join(errRolledBack, tx.Conn().Close(ctx))
			case 1, 2, 3:
				return errRolledBack
			}
			return nil
		})
		return ids, err
	})
}

// publishInVain publishes below a savepoint that is rolled back.
func (p *process) publishInVain(ctx context.Context, caller, topic string, tx pgx.Tx) error {
	from := int(p.next.Add(2) - 2)
	err := p.record.PublishBy(topic, caller+" below a savepoint", from, 2, func(msgs []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
		savepoint, err := tx.Begin(ctx)
		if err == nil {
			_, err = p.broker.PublishTx(ctx, savepoint, topic, msgs...)
		}
		if err == nil {
			err = savepoint.Rollback(ctx)
		}
		if err == nil {
			err = errRolledBack
		}
		return nil, crashtest.Undone(err)
	})
	if errors.Is(err, errRolledBack) {
		return nil
	}
	return err
}

// consume does to messages what consumers do, again and again.
func (p *process) consume(ctx context.Context, name, sub string, made crashtest.Made, ignored ...error) {
	w := &crashtest.Worker{Broker: p.broker, Subscription: sub, Record: p.record, Stall: 5 * time.Second, Bury: true}
	rests := time.Now()
	p.repeat(ctx, name, func(rng *rand.Rand, caller string) error {
		w.Name, w.Rand = caller, rng
		if made.Effects {
			w.AckBy = func(ctx context.Context, msgs []crashtest.Message) (int, error) {
				return ackWithEffects(ctx, p.broker, p.pool, sub, msgs, rng)
			}
		}
		if sub == "slow" && time.Now().After(rests) {
			pause(ctx, rng, 15*time.Second)
			rests = time.Now().Add(time.Duration(rng.Int64N(int64(15 * time.Second))))
		}
		return w.Step(ctx)
	}, ignored...)
}

// ackWithEffects acks messages in a transaction, and writes down that it did. With rng the transaction may stall and roll back.
func ackWithEffects(ctx context.Context, b *fastpubsub.Broker, pool *pgxpool.Pool, sub string, msgs []crashtest.Message, rng *rand.Rand) (int, error) {
	err := inTx(ctx, pool, pgx.TxOptions{}, func(tx pgx.Tx) error {
		n, err := b.AckTx(ctx, tx, sub, crashtest.IDs(msgs))
		if err != nil {
			return err
		}
		if n < len(msgs) { // others have done what some of them are for
			return errRolledBack
		}
		for _, m := range msgs {
			if err := writeEffect(ctx, tx, sub, m.N); err != nil {
				return err
			}
		}
		if rng == nil {
			return nil
		}
		if rng.IntN(20) == 0 {
			pause(ctx, rng, 4*time.Second)
		}
		if rng.IntN(5) == 0 {
			return errRolledBack
		}
		return nil
	})
	return len(msgs), err
}

func writeEffect(ctx context.Context, tx pgx.Tx, sub string, n int) error {
	_, err := tx.Exec(ctx, "INSERT INTO soak.effects (sub, n) VALUES ($1, $2)", sub, n)
	return err
}

// receive lets Receive run for some seconds.
func (p *process) receive(ctx context.Context, rng *rand.Rand, caller, sub string) error {
	return p.receiveBy(ctx, rng, caller, func(ctx context.Context, options fastpubsub.ReceiveOptions, handle handleFunc) error {
		return p.broker.Receive(ctx, sub, func(ctx context.Context, msg fastpubsub.Message) error {
			return handle(ctx, msg, func() error { return nil })
		}, options)
	})
}

// receiveTx lets ReceiveTx run for some seconds.
func (p *process) receiveTx(ctx context.Context, rng *rand.Rand, caller, sub string) error {
	return p.receiveBy(ctx, rng, caller, func(ctx context.Context, options fastpubsub.ReceiveOptions, handle handleFunc) error {
		return p.broker.ReceiveTx(ctx, sub, func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
			return handle(ctx, msg, func() error {
				return writeEffect(ctx, tx, sub, crashtest.Received(msg.ID, msg.Payload, 0).N)
			})
		}, options)
	})
}

var errOnPurpose = errors.New("failed on purpose")

type handleFunc func(ctx context.Context, msg fastpubsub.Message, write func() error) error

func (p *process) receiveBy(ctx context.Context, rng *rand.Rand, caller string,
	run func(ctx context.Context, options fastpubsub.ReceiveOptions, handle handleFunc) error) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second+time.Duration(rng.Int64N(int64(15*time.Second))))
	const atOnce = 4
	dice := make(chan int, atOnce) // handlers do not share a generator
	rolled := make(chan struct{})
	go func() {
		defer close(rolled)
		for {
			select {
			case dice <- rng.IntN(100):
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		cancel()
		<-rolled
	}()
	handle := func(handling context.Context, msg fastpubsub.Message, write func() error) error {
		m := crashtest.Received(msg.ID, msg.Payload, msg.DeliveryAttempts)
		entry := crashtest.Entry{Caller: fmt.Sprintf("%s, handler %d", caller, p.handled.Add(1)), Call: crashtest.Handle,
			Subscription: msg.SubscriptionID, Messages: []crashtest.Message{m}}
		var outcome error
		err := p.record.Do(entry, func() (_ []crashtest.Message, n int, _ error) {
			outcome = write()
			roll := 99
			select {
			case roll = <-dice:
			case <-ctx.Done():
			}
			switch {
			case outcome != nil:
			case roll < 9:
				outcome = errOnPurpose
			case roll < 12:
				outcome = fastpubsub.Permanent(errOnPurpose)
			case roll < 15:
				outcome = fastpubsub.Snooze(time.Second)
			case roll < 18: // longer than the ack deadline
				select {
				case <-time.After(4 * time.Second):
				case <-handling.Done():
					outcome = handling.Err()
				}
			}
			if outcome == nil {
				n = 1
			}
			return entry.Messages, n, nil
		})
		if outcome == errOnPurpose && m.N%2 == 0 {
			panic(outcome)
		}
		return errors.Join(err, outcome)
	}
	return run(ctx, fastpubsub.ReceiveOptions{Consumer: caller, Concurrency: atOnce, ShutdownTimeout: time.Second, MaxMessages: 50}, handle)
}

// undertake looks after dead letters: some are delivered again, some are purged.
func (p *process) undertake(ctx context.Context, rng *rand.Rand, caller, sub string) error {
	pause(ctx, rng, 2*time.Second)
	letters, err := p.broker.DeadLetters(ctx, sub, fastpubsub.ListOptions{Limit: 50})
	if err != nil {
		return err
	}
	var all []crashtest.Message
	for _, l := range letters {
		all = append(all, crashtest.Received(l.ID, l.Payload, l.DeliveryAttempts))
	}
	again, last := all[:len(all)/2], all[len(all)/2:]
	last = last[:len(last)/3]
	for _, change := range []struct {
		call crashtest.Call
		msgs []crashtest.Message
		do   func(ctx context.Context, sub string, ids []fastpubsub.ID) (int, error)
	}{{crashtest.Reprocess, again, p.broker.Reprocess}, {crashtest.Purge, last, p.broker.Purge}} {
		if len(change.msgs) == 0 {
			continue
		}
		err := p.record.Do(crashtest.Entry{Caller: caller, Call: change.call, Subscription: sub, Messages: change.msgs},
			func() ([]crashtest.Message, int, error) {
				n, err := change.do(ctx, sub, crashtest.IDs(change.msgs))
				return change.msgs, n, err
			})
		if err != nil {
			return err
		}
	}
	return nil
}
