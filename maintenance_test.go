package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestMaintenanceHoldsNobodyUp keeps transactions open that are in the way of maintenance: one that has read all tables, as
// pg_dump does, one that has published into the slot that was left, and one that has acked. Meanwhile maintenance runs all the
// time, and publishing, consuming and acking go on: a wait of 5 seconds for a lock would be an error. When the transactions
// have ended, space comes back, and nothing is lost.
func TestMaintenanceHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["lock_timeout"] = "5s" })
	maintained := maintainedBroker(t, db)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	ids := publish(t, b, "t", numbered(0, 2)...)
	if got := idsOf(consume(t, b, "s", 10)); !slices.Equal(got, ids) {
		t.Fatalf("got %v, want %v", got, ids)
	}

	dump := begin(t, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if _, err := dump.Exec(t.Context(), db.SQL(`SELECT (SELECT count(*) FROM {schema}.messages) + (SELECT count(*) FROM {schema}.leases) + (SELECT count(*) FROM {schema}.cursors)`)); err != nil {
		t.Fatal(err)
	}
	publisher := begin(t, db, pgx.TxOptions{})
	late := publishTx(t, b, publisher, "t", numbered(2, 1)...)
	acker := begin(t, db, pgx.TxOptions{})
	if n, err := b.AckTx(t.Context(), acker, "s", ids[:1]); err != nil || n != 1 {
		t.Fatalf("acked %d: %v", n, err)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stopped := make(chan error, 1)
	go func() {
		for {
			if _, err := maintained.CleanupAcked(ctx, 0); err != nil {
				stopped <- err
				return
			}
		}
	}()
	for i := range 200 {
		want := publish(t, b, "t", numbered(10+i, 1)...)
		var got []fastpubsub.ID
		for len(got) == 0 { // what was spilled is due within 100 ms
			got = idsOf(consume(t, b, "s", 10))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		if n, err := b.Ack(t.Context(), "s", got); err != nil || n != 1 {
			t.Fatalf("acked %d: %v", n, err)
		}
	}
	stop()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if bytes := query[int64](t, db, `SELECT {schema}.slot_bytes('messages', 0::smallint)`); bytes == 0 {
		t.Error("the slot was truncated while transactions were open that need it")
	}

	commit(t, acker)
	commit(t, publisher)
	commit(t, dump)
	if got := drain(t, b, "s", 10); !slices.Equal(got, late) {
		t.Errorf("got %v, want %v", got, late)
	}
	if n, err := b.Ack(t.Context(), "s", ids); err != nil || n != 1 {
		t.Errorf("acked %d: %v", n, err)
	}
	emptied(t, maintained, db)
}

// emptied cleans up until all but the current slots are empty.
func emptied(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		freed, err := b.CleanupAcked(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		left := query[int64](t, db, `
			SELECT sum({schema}.slot_bytes(ring, slot)) FILTER (WHERE slot <> {schema}.current_slot(ring)) FROM {schema}.slots`)
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are left: %+v", left, freed)
		}
	}
}

// TestSpill moves a subscription that nobody consumes from out of the log, by the filter it has, and then consumes from it.
func TestSpill(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "all", "t", noFilter)
	createSubscription(t, b, "some", "t", `{"n":[0, 7, 2499]}`)
	var ids []fastpubsub.ID
	for i := range 5 {
		ids = append(ids, publish(t, b, "t", numbered(500*i, 500)...)...)
	}
	emptied(t, maintainedBroker(t, db), db)
	if n := query[int](t, db, `SELECT count(*) FROM {schema}.deliveries WHERE state = 'available' AND attempts = 0`); n != 2503 {
		t.Errorf("%d messages were moved, want 2503", n)
	}
	if m, err := b.Metrics(t.Context(), "all"); err != nil || m.Available != 2500 {
		t.Errorf("metrics are %+v: %v", m, err)
	}
	for sub, want := range map[string][]fastpubsub.ID{"all": ids, "some": {ids[0], ids[7], ids[2499]}} {
		got := drain(t, b, sub, 1000)
		slices.SortFunc(got, func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) })
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %d messages, want %d", sub, len(got), len(want))
		}
	}
}

// TestPatience keeps a snapshot open for longer than maintenance waits for one.
func TestPatience(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	publish(t, b, "t", numbered(0, 10)...)
	drain(t, b, "s", 10)
	forgotten := begin(t, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if _, err := forgotten.Exec(t.Context(), `SELECT txid_current_snapshot()`); err != nil {
		t.Fatal(err)
	}
	freed, err := b.CleanupAcked(t.Context(), 0)
	if err != nil || freed.Rotated != 2 || freed.Waiting != 2 || freed.Slots != 0 {
		t.Errorf("freed %+v: %v", freed, err)
	}
	move(time.Hour)
	if freed, err = b.CleanupAcked(t.Context(), 0); err != nil || freed.Slots != 2 || freed.Bytes == 0 {
		t.Errorf("freed %+v: %v", freed, err)
	}
}

// TestRotationCutOff is after a crash between the two things that rotate does: the slot was left, but nothing says so.
func TestRotationCutOff(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	createSubscription(t, b, "idle", "t", `{"n":[-1]}`)
	ids := publish(t, b, "t", numbered(0, 3)...)
	exec(t, db, `SELECT setval('{schema}.message_slot', 1), setval('{schema}.lease_slot', 1)`)
	emptied(t, maintainedBroker(t, db), db)
	if got := drain(t, b, "s", 10); !slices.Equal(got, ids) {
		t.Errorf("got %v, want %v", got, ids)
	}
}

// TestRun lets two brokers run maintenance while there is work, one of them without a database for a while.
func TestRun(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stopped := make(chan error, 2)
	for range cap(stopped) {
		broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{
			Schema: db.Schema, Logger: slog.New(slog.DiscardHandler),
			Maintenance: fastpubsub.MaintenanceSettings{SlotAge: time.Nanosecond, SpillAfter: time.Nanosecond, Patience: time.Nanosecond, Interval: time.Millisecond},
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() { stopped <- broker.Run(ctx) }()
	}
	deadline := time.Now().Add(time.Minute)
	for i := 0; query[int64](t, db, `SELECT last_value FROM {schema}.message_slot`) < 8; i++ {
		ids := publish(t, b, "t", numbered(i, 1)...)
		var got []fastpubsub.ID
		for len(got) == 0 {
			got = drain(t, b, "s", 10)
		}
		if !slices.Equal(got, ids) {
			t.Fatalf("got %v, want %v", got, ids)
		}
		if time.Now().After(deadline) {
			t.Fatal("the ring has not turned twice within a minute")
		}
	}
	stop()
	for range cap(stopped) {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
}

func TestMaintenanceSettings(t *testing.T) {
	t.Parallel()
	_, db := newBroker(t)
	_, err := fastpubsub.New(db.Pool, fastpubsub.Config{Maintenance: fastpubsub.MaintenanceSettings{SlotAge: -1, Patience: -1}})
	var invalid *fastpubsub.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Problems) != 2 || invalid.Problems[0].Field != "maintenance.slot_age" {
		t.Errorf("got %v", err)
	}
	b := maintainedBroker(t, db)
	if _, err := b.CleanupAcked(t.Context(), -1); !errors.Is(err, fastpubsub.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

// TestPassTime gives maintenance next to no time, so that each pass makes a step: all subscriptions that lag get past the log
// all the same, and what has expired ends.
func TestPassTime(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	const subscriptions, messages = 4, 1500
	for i := range subscriptions {
		createSubscription(t, b, fmt.Sprint("s", i), "t", noFilter)
	}
	for range messages / 500 {
		publish(t, b, "t", numbered(0, 500)...)
	}
	for i := range subscriptions {
		consume(t, b, fmt.Sprint("s", i), 100)
	}
	move(time.Hour)
	brief, err := fastpubsub.New(db.Pool, fastpubsub.Config{
		Schema: db.Schema, Maintenance: fastpubsub.MaintenanceSettings{SpillAfter: 1, Patience: 1, PassTime: 1}})
	if err != nil {
		t.Fatal(err)
	}
	released := 0
	for more := true; more; {
		stuck, err := brief.CleanupStuck(t.Context())
		if err != nil || stuck.Released > 100 {
			t.Fatalf("a pass did %+v: %v", stuck, err)
		}
		released += stuck.Released
		more = stuck.More
	}
	if want := subscriptions * 100; released != want {
		t.Errorf("%d messages were released, want %d", released, want)
	}

	deadline := time.Now().Add(time.Minute)
	passes, spilled := 0, 0
	for left := int64(1); left > 0; passes++ {
		freed, err := brief.CleanupAcked(t.Context(), 0)
		if err != nil || freed.Spilled > 1000 {
			t.Fatalf("a pass did %+v: %v", freed, err)
		}
		spilled += freed.Spilled
		move(time.Second) // since a slot was left
		left = query[int64](t, db, `
			SELECT sum({schema}.slot_bytes(ring, slot)) FROM {schema}.slots
			WHERE ring = 'messages' AND slot <> {schema}.current_slot(ring)`) // that of leases is left anew by each pass
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are left after %d passes", left, passes)
		}
	}
	if want := subscriptions * (messages - 100); spilled != want || passes < 2*subscriptions {
		t.Errorf("%d messages were spilled by %d passes, want %d", spilled, passes, want)
	}
}
