package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
)

// A phase is measured as a whole: run, and nothing else, while the clock runs.
type phase interface {
	title() string
	engine() bool // false for what does without our tables
	prepare(ctx context.Context, e *env) error
	run(ctx context.Context, e *env) (tally, error)
	check(ctx context.Context, e *env) error // what was consumed against what was published
}

// env is what one phase works with in one round.
type env struct {
	*bench
	pool   *pgxpool.Pool
	broker *fastpubsub.Broker
	next   atomic.Int64 // the number of the next message; as many are published or about to be

	closers []func() error // of what the phase has started
}

func (e *env) close() error {
	var all error
	for _, c := range e.closers {
		all = errors.Join(all, c())
	}
	return all
}

// tally is what a phase has done.
type tally struct {
	messages int64 // what figures "a message" are shares of: published, inserted, consumed and acked, or polls
	elapsed  time.Duration
	metrics  []Metric
}

// sample is a phase in one round.
type sample struct {
	metrics []Metric
	tables  []Table
}

func (s sample) value(name string) (float64, bool) {
	for _, m := range s.metrics {
		if m.Name == name {
			return m.Value, true
		}
	}
	return 0, false
}

func (b *bench) measure(ctx context.Context, p phase) (sample, error) {
	if err := b.fresh(ctx, p.engine()); err != nil {
		return sample{}, err
	}
	t, used, err := b.runPhase(ctx, p)
	if err != nil {
		return sample{}, err
	}
	tables, err := b.tables(ctx)
	if err != nil {
		return sample{}, err
	}
	metrics := append([]Metric{{messagesPerSecond, perSecond, float64(t.messages) / t.elapsed.Seconds()}}, t.metrics...)
	metrics = append(metrics, used...)
	return sample{append(metrics, tableMetrics(tables, t.messages)...), tables}, nil
}

// runPhase closes its connections before it returns, so that they tell their statistics.
func (b *bench) runPhase(ctx context.Context, p phase) (t tally, used []Metric, err error) {
	e := &env{bench: b}
	if e.pool, err = pgxpool.NewWithConfig(ctx, b.pool.Copy()); err != nil {
		return tally{}, nil, err
	}
	defer e.pool.Close()
	if e.broker, err = fastpubsub.New(e.pool, fastpubsub.Config{Schema: b.schema}); err != nil {
		return tally{}, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel() // ends connections to what is closed
		err = errors.Join(err, e.close())
	}()
	if err := p.prepare(ctx, e); err != nil {
		return tally{}, nil, err
	}
	h, err := b.hold(ctx)
	if err != nil {
		return tally{}, nil, err
	}
	defer func() { err = errors.Join(err, h.release(context.WithoutCancel(ctx))) }()
	if err := b.checkpoint(ctx); err != nil {
		return tally{}, nil, err
	}

	runtime.GC()
	before, err := b.readUsage(ctx, true)
	if err != nil {
		return tally{}, nil, err
	}
	if t, err = p.run(ctx, e); err != nil {
		return tally{}, nil, err
	}
	after, err := b.readUsage(ctx, false)
	if err != nil {
		return tally{}, nil, err
	}
	return t, b.usageMetrics(before, after, t.messages), p.check(ctx, e)
}

// workers runs n of them and waits for all; the first error stops the others.
func workers(ctx context.Context, n int, work func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range n {
		g.Go(func() error { return work(ctx, i) })
	}
	return g.Wait()
}

// held is a transaction of somebody else that stays open while a phase is measured.
type held []*pgx.Conn

func (b *bench) hold(ctx context.Context) (held, error) {
	var statements []string
	if b.config.HoldSnapshot {
		statements = append(statements, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
	}
	if b.config.HoldWriter {
		statements = append(statements, "BEGIN; INSERT INTO "+b.quotedSchema()+".held VALUES (1)")
	}
	var h held
	for _, sql := range statements {
		config := b.pool.ConnConfig.Copy()
		config.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return nil, errors.Join(err, h.release(ctx))
		}
		h = append(h, conn)
		if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return nil, errors.Join(err, h.release(ctx))
		}
	}
	return h, nil
}

// release ends the transactions. That one did not last until now makes the figures wrong, so it is an error.
func (h held) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dropTimeout)
	defer cancel()
	var all error
	for _, conn := range h {
		if _, err := conn.Exec(ctx, "COMMIT"); err != nil {
			all = errors.Join(all, fmt.Errorf("the transaction held open: %w", err))
		}
		all = errors.Join(all, conn.Close(ctx))
	}
	return all
}
