package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
)

// receiveConcurrency is how many handlers run at once in the workloads of Receive.
const receiveConcurrency = 16

// receiveBackoff is as short as it may be, so that what failed comes again while there is still a backlog.
const receiveBackoff = time.Second

var errFails = errors.New("fails once")

// receivePhase is one call of Receive on a backlog, with a handler that does nothing, or that inserts a row in the
// message's transaction.
type receivePhase struct {
	backlog, publishBatch int
	tx                    bool
	failures              float64 // share of the messages whose first delivery fails; below 1

	handled []atomic.Int32 // times without failure, by the message's number
	failed  atomic.Int64
}

func (p *receivePhase) title() string {
	name := "receive"
	if p.tx {
		name = "receive-tx, one insert"
	}
	if p.failures > 0 {
		name = fmt.Sprintf("receive, %.3g %% fail once", 100*p.failures)
	}
	return fmt.Sprintf("%s, %d handlers, published %d a call", name, receiveConcurrency, p.publishBatch)
}

func (p *receivePhase) engine() bool { return true }

func (p *receivePhase) prepare(ctx context.Context, e *env) error {
	if err := e.createTopics(ctx, 0, fastpubsub.Filter{}); err != nil {
		return err
	}
	settings := fastpubsub.SubscriptionSettings{AckDeadline: ackDeadline, BackoffMin: receiveBackoff}
	sub := fastpubsub.Subscription{ID: subscription(0), TopicID: topic, SubscriptionSettings: settings}
	if _, err := e.broker.CreateSubscription(ctx, sub); err != nil {
		return err
	}
	if err := e.warmUp(ctx); err != nil {
		return err
	}
	if err := createEffects(ctx, e); err != nil {
		return err
	}
	p.handled = make([]atomic.Int32, p.backlog)
	p.failed.Store(0)
	return e.fill(ctx, p.backlog, p.publishBatch, 0)
}

func createEffects(ctx context.Context, e *env) error {
	_, err := e.pool.Exec(ctx, "CREATE TABLE "+e.quotedSchema()+".effects (n bigint)")
	return err
}

func insertEffect(e *env) string { return "INSERT INTO " + e.quotedSchema() + ".effects VALUES ($1)" }

func (p *receivePhase) run(ctx context.Context, e *env) (tally, error) {
	receiving, enough := context.WithCancel(ctx)
	defer enough()
	broker, err := fastpubsub.New(e.pool, fastpubsub.Config{Schema: e.schema, Logger: slog.New(slog.DiscardHandler)}) // of failures
	if err != nil {
		return tally{}, err
	}
	start := time.Now()
	var done, firsts, ackedByThen, untilThen atomic.Int64
	note := func(msg fastpubsub.Message) error {
		if err := checkPayload(msg.Payload, e.config.PayloadBytes); err != nil {
			return err
		}
		n := number(msg.Payload)
		if msg.DeliveryAttempts == 1 && firsts.Add(1) == int64(p.backlog) {
			ackedByThen.Store(done.Load())
			untilThen.Store(int64(time.Since(start)))
		}
		if msg.DeliveryAttempts == 1 && p.failures > 0 && matches(n, p.failures) {
			p.failed.Add(1)
			return errFails
		}
		if n >= 0 && n < int64(p.backlog) {
			p.handled[n].Add(1)
		}
		if done.Add(1) == int64(p.backlog) {
			enough()
		}
		return nil
	}
	options := fastpubsub.ReceiveOptions{Consumer: "bench", Concurrency: receiveConcurrency}
	insert := insertEffect(e)
	if p.tx {
		err = broker.ReceiveTx(receiving, subscription(0), func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
			if _, err := tx.Exec(ctx, insert, number(msg.Payload)); err != nil {
				return err
			}
			return note(msg)
		}, options)
	} else {
		err = broker.Receive(receiving, subscription(0), func(_ context.Context, msg fastpubsub.Message) error { return note(msg) }, options)
	}
	if err == nil {
		err = ctx.Err()
	}
	t := tally{done.Load(), time.Since(start), nil}
	if p.failures > 0 {
		// The rate is that up to the last first delivery: afterwards some only wait for their backoff.
		t.metrics = []Metric{
			{nacks, count, float64(p.failed.Load())},
			{"messages a second until the last was delivered again", perSecond, divide(float64(t.messages), t.elapsed.Seconds())}}
		t.messages, t.elapsed = ackedByThen.Load(), time.Duration(untilThen.Load())
	}
	return t, err
}

func (p *receivePhase) check(ctx context.Context, e *env) error {
	for n := range p.handled {
		if times := p.handled[n].Load(); times != 1 {
			return fmt.Errorf("%w: message %d was handled %d times", ErrMismatch, n, times)
		}
	}
	var failures int64
	for n := range int64(p.backlog) {
		if p.failures > 0 && matches(n, p.failures) {
			failures++
		}
	}
	if n := p.failed.Load(); n != failures {
		return fmt.Errorf("%w: %d messages failed, not %d", ErrMismatch, n, failures)
	}
	m, err := e.broker.Metrics(ctx, subscription(0))
	if err == nil && m.Acked != int64(p.backlog) {
		err = fmt.Errorf("%w: of %d messages %d are acked", ErrMismatch, p.backlog, m.Acked)
	}
	return err
}

// insertPhase is what receive-tx is compared with: the same inserts, each in a transaction, with nothing received.
type insertPhase struct{ transactions int }

func (p *insertPhase) title() string {
	return fmt.Sprintf("inserts in transactions, %d at once", receiveConcurrency)
}

func (p *insertPhase) engine() bool { return true }

func (p *insertPhase) prepare(ctx context.Context, e *env) error { return createEffects(ctx, e) }

func (p *insertPhase) run(ctx context.Context, e *env) (tally, error) {
	insert := insertEffect(e)
	var next atomic.Int64
	start := time.Now()
	err := workers(ctx, receiveConcurrency, func(ctx context.Context, _ int) error {
		for {
			n := next.Add(1) - 1
			if n >= int64(p.transactions) {
				return nil
			}
			err := pgx.BeginFunc(ctx, e.pool, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, insert, n)
				return err
			})
			if err != nil {
				return err
			}
		}
	})
	return tally{int64(p.transactions), time.Since(start), nil}, err
}

func (p *insertPhase) check(context.Context, *env) error { return nil }
