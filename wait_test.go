package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
)

// TestWaitersShareLooks has many consumers wait for one subscription: they cost about as much as one.
func TestWaitersShareLooks(t *testing.T) {
	t.Parallel()
	const waiters, wait = 200, 2 * time.Second
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	consume(t, b, "s", 1)
	before := db.Pool.Stat().AcquireCount()
	var g errgroup.Group
	for range waiters {
		g.Go(func() error {
			msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "w", Wait: wait})
			if len(msgs) > 0 {
				return fmt.Errorf("%d messages of nowhere", len(msgs))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	// Each looks when it comes and when it goes. Between them they look every 50 to 150 ms, where each on its own would
	// some 20 times. On a slow machine those looks are fewer.
	looks := db.Pool.Stat().AcquireCount() - before
	if most := int64(2*waiters + 200); looks > most || looks < waiters {
		t.Errorf("%d consumers looked %d times, want %d to %d", waiters, looks, waiters, most)
	}
}

// TestAllWaitersServed gives each of many consumers that wait for one subscription a message.
func TestAllWaitersServed(t *testing.T) {
	t.Parallel()
	const waiters = 50
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	createSubscription(t, b, "other", "t", noFilter)
	consume(t, b, "s", 1)
	before := db.Pool.Stat().AcquireCount()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := make(chan fastpubsub.ID, waiters)
	var g errgroup.Group
	for range waiters {
		g.Go(func() error {
			msgs, err := b.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "w", Max: 1, Wait: time.Minute})
			if err == nil && len(msgs) != 1 {
				err = fmt.Errorf("%d messages, want 1", len(msgs))
			}
			if err == nil {
				got <- msgs[0].ID
			}
			return err
		})
	}
	given, giveUp := context.WithCancel(ctx) // some give up meanwhile, one of them perhaps with the turn
	var gone errgroup.Group
	for range 10 {
		gone.Go(func() error {
			_, err := b.Consume(given, "s", fastpubsub.ConsumeOptions{Consumer: "gone", Max: 1, Wait: time.Minute})
			if !errors.Is(err, context.Canceled) {
				return fmt.Errorf("cancelled: %w", err)
			}
			return nil
		})
	}
	for db.Pool.Stat().AcquireCount() < before+waiters+10 {
		time.Sleep(time.Millisecond)
	}
	giveUp()
	if err := gone.Wait(); err != nil {
		t.Fatal(err)
	}
	want := map[fastpubsub.ID]bool{}
	for i := range waiters {
		want[publish(t, b, "t", numbered(i, 1)...)[0]] = true
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	close(got)
	for id := range got {
		if !want[id] {
			t.Errorf("%v came twice, or was not published", id)
		}
		delete(want, id)
	}
	if len(want) > 0 {
		t.Errorf("%d messages did not come", len(want))
	}
}

// cancelOnBatch ends a context right before a claim is sent.
type cancelOnBatch struct {
	cancel atomic.Pointer[context.CancelFunc]
}

func (c *cancelOnBatch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (c *cancelOnBatch) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (c *cancelOnBatch) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	if cancel := c.cancel.Swap(nil); cancel != nil {
		(*cancel)()
	}
	return ctx
}
func (c *cancelOnBatch) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *cancelOnBatch) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// TestConsumeCancelledWhileItRuns ends the context of a claim that is on its way: what it takes is not lost until the ack
// deadline.
func TestConsumeCancelledWhileItRuns(t *testing.T) {
	t.Parallel()
	var tracer cancelOnBatch
	b, _ := newBroker(t, func(c *pgxpool.Config) { c.ConnConfig.Tracer = &tracer })
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	consume(t, b, "s", 1)
	for i := range 5 { // it may take too long once
		ids := publish(t, b, "t", numbered(i, 1)...)
		ctx, cancel := context.WithCancel(t.Context())
		tracer.cancel.Store(&cancel)
		msgs, err := b.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "w", Wait: time.Minute})
		cancel()
		if err == nil && len(msgs) == 1 && msgs[0].ID == ids[0] {
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("consumed %v, %v", msgs, err)
		}
	}
	t.Error("no message was returned")
}

// TestHeldIsDelivered lets a lease run out while a transaction has acked its message: when that is rolled back, who waits gets the
// message, without maintenance.
func TestHeldIsDelivered(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	ids := publish(t, b, "t", numbered(0, 1)...)
	if got := idsOf(consume(t, b, "s", 1)); !slices.Equal(got, ids) {
		t.Fatalf("got %v, want %v", got, ids)
	}
	tx := begin(t, db, pgx.TxOptions{})
	if n, err := b.AckTx(t.Context(), tx, "s", ids); err != nil || n != 1 {
		t.Fatalf("acked %d, %v", n, err)
	}
	move(time.Hour)
	if got := idsOf(consume(t, b, "s", 1)); len(got) > 0 { // whoever looks now notes that somebody has it
		t.Fatalf("got %v, which somebody has", got)
	}
	var msgs []fastpubsub.Message
	var g errgroup.Group
	g.Go(func() (err error) {
		msgs, err = b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "w", Wait: time.Minute})
		return err
	})
	fastpubsub.WaitForTopic(b, "s")
	deadline := time.Now().Add(time.Minute)
	for query[bool](t, db, `SELECT ready FROM {schema}.look(ARRAY['s'])`) { // for transactions of other tests that have ended
		if time.Now().After(deadline) {
			t.Fatal("looks find what somebody has")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil || !slices.Equal(idsOf(msgs), ids) {
		t.Errorf("got %v, want %v; %v", idsOf(msgs), ids, err)
	}
}
