package bench

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
)

// receiveConcurrency is how many handlers run at once in the workloads of Receive.
const receiveConcurrency = 16

// receivePhase is one call of Receive on a backlog, with a handler that does nothing, or that inserts a row in the
// message's transaction.
type receivePhase struct {
	backlog, publishBatch int
	tx                    bool

	handled []atomic.Int32 // times, by the message's number
}

func (p *receivePhase) title() string {
	name := "receive"
	if p.tx {
		name = "receive-tx, one insert"
	}
	return fmt.Sprintf("%s, %d handlers, published %d a call", name, receiveConcurrency, p.publishBatch)
}

func (p *receivePhase) engine() bool { return true }

func (p *receivePhase) prepare(ctx context.Context, e *env) error {
	if err := e.createTopics(ctx, 1, fastpubsub.Filter{}); err != nil {
		return err
	}
	if err := e.warmUp(ctx); err != nil {
		return err
	}
	if err := createEffects(ctx, e); err != nil {
		return err
	}
	p.handled = make([]atomic.Int32, p.backlog)
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
	var done atomic.Int64
	note := func(msg fastpubsub.Message) error {
		if err := checkPayload(msg.Payload, e.config.PayloadBytes); err != nil {
			return err
		}
		if n := number(msg.Payload); n >= 0 && n < int64(p.backlog) {
			p.handled[n].Add(1)
		}
		if done.Add(1) == int64(p.backlog) {
			enough()
		}
		return nil
	}
	options := fastpubsub.ReceiveOptions{Consumer: "bench", Concurrency: receiveConcurrency}
	insert := insertEffect(e)
	start := time.Now()
	var err error
	if p.tx {
		err = e.broker.ReceiveTx(receiving, subscription(0), func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
			if _, err := tx.Exec(ctx, insert, number(msg.Payload)); err != nil {
				return err
			}
			return note(msg)
		}, options)
	} else {
		err = e.broker.Receive(receiving, subscription(0), func(_ context.Context, msg fastpubsub.Message) error { return note(msg) }, options)
	}
	if err == nil {
		err = ctx.Err()
	}
	return tally{done.Load(), time.Since(start), nil}, err
}

func (p *receivePhase) check(ctx context.Context, e *env) error {
	for n := range p.handled {
		if times := p.handled[n].Load(); times != 1 {
			return fmt.Errorf("%w: message %d was handled %d times", ErrMismatch, n, times)
		}
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

// wakePhase is how long after the commit a handler begins, while there is nothing else to do.
type wakePhase struct{ otherProcess bool }

func (p *wakePhase) title() string {
	if p.otherProcess {
		return "wake, publisher in another process"
	}
	return "wake, publisher in the same process"
}

func (p *wakePhase) engine() bool { return true }

func (p *wakePhase) prepare(ctx context.Context, e *env) error {
	return e.createTopics(ctx, 1, fastpubsub.Filter{})
}

// wakePause lies between two messages, so that each finds everybody waiting.
const wakePause = 10 * time.Millisecond

func (p *wakePhase) run(ctx context.Context, e *env) (tally, error) {
	config := fastpubsub.Config{Schema: e.schema, Maintenance: fastpubsub.MaintenanceSettings{Off: true}, Logger: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	newBroker := func() (*fastpubsub.Broker, error) {
		pool, err := pgxpool.NewWithConfig(ctx, e.bench.pool.Copy())
		if err != nil {
			return nil, err
		}
		b, err := fastpubsub.New(pool, config)
		wg.Go(func() {
			defer pool.Close()
			if err == nil {
				_ = b.Run(ctx) // nil when ctx ends
			}
		})
		return b, err
	}
	consumer, err := newBroker()
	if err != nil {
		return tally{}, err
	}
	publisher := consumer
	if p.otherProcess {
		if publisher, err = newBroker(); err != nil {
			return tally{}, err
		}
	}
	for !consumer.Listening() || !publisher.Listening() {
		if err := sleepFor(ctx, time.Millisecond); err != nil {
			return tally{}, err
		}
	}
	began := make(chan time.Time, 1)
	received := make(chan error, 1)
	receiving, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		received <- consumer.Receive(receiving, subscription(0), func(context.Context, fastpubsub.Message) error {
			began <- time.Now()
			return nil
		}, fastpubsub.ReceiveOptions{Consumer: "bench"})
	}()
	latency := newLatencies()
	var messages int64
	start := time.Now()
	for time.Since(start) < e.config.Duration {
		if err := sleepFor(ctx, wakePause/2+rand.N(wakePause)); err != nil {
			return tally{}, err
		}
		if _, err := publisher.Publish(ctx, topic, fastpubsub.NewMessage{Payload: []byte(`{}`)}); err != nil {
			return tally{}, err
		}
		committed := time.Now()
		select {
		case at := <-began:
			if messages++; messages > warmCalls {
				latency.record(at.Sub(committed), 1)
			}
		case err := <-received:
			return tally{}, err
		}
	}
	elapsed := time.Since(start)
	stop()
	if err := <-received; err != nil {
		return tally{}, err
	}
	return tally{messages, elapsed, latency.metrics("commit to handler")}, nil
}

func (p *wakePhase) check(context.Context, *env) error { return nil }

func sleepFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
