package doctor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/doctor"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestLag(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	broker := subscribed(t, db)
	clock := db.StopClock(t)
	publish(t, broker, 1500)
	want(t, examine(t, db), "lag", doctor.OK, "", "1 subscription, none lags; 1,500 messages wait in all")
	move(t, clock, 10*time.Minute)
	want(t, examine(t, db), "lag", doctor.Notice, "start a consumer; or, if nobody needs it, delete it: curl -X DELETE $API/subscriptions/s",
		"nobody has consumed from subscription s since it was made ", "1,500 messages wait, the oldest for 10 min", "slot 0 of the log, ", ", is kept for it")
	move(t, clock, 3*time.Hour)
	f := want(t, examine(t, db), "lag", doctor.Warning, "start a consumer", "nobody has consumed", "the oldest for 3 h")
	if f.Facts["available"] != int64(1500) || f.Facts["slot"] != 0 || f.Facts["never_consumed"] != true {
		t.Errorf("facts %v", f.Facts)
	}
	first := consume(t, broker, 1)
	f = want(t, examine(t, db), "lag", doctor.Warning, "see whether its consumers run", "subscription s lags: 1,499 messages wait")
	if f.Facts["never_consumed"] != false {
		t.Errorf("facts %v", f.Facts)
	}
	ack(t, broker, first)
	for range 2 {
		if msgs, err := broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "worker-1", Max: 1000}); err != nil {
			t.Fatal(err)
		} else {
			ack(t, broker, msgs)
		}
	}
	want(t, examine(t, db), "lag", doctor.OK, "", "none lags; 0 messages wait")
}

// A filter does not hide what waits, and does not count what it does not let through.
func TestLagFiltered(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	broker := subscribed(t, db)
	filter, err := fastpubsub.ParseFilter([]byte(`{"n": [1, 2]}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.DeleteSubscription(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		if _, err := broker.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: fmt.Sprint("f", i), TopicID: "t", Filter: filter}); err != nil {
			t.Fatal(err)
		}
	}
	clock := db.StopClock(t)
	publish(t, broker, 10)
	move(t, clock, 10*time.Minute)
	report := examine(t, db)
	want(t, report, "lag", doctor.Notice, "start a consumer", "subscription f0", "2 messages wait")
	want(t, report, "lag", doctor.Notice, "", "and 2 more subscriptions that lag")
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	broker := subscribed(t, db)
	publish(t, broker, 3)
	nack(t, broker, consume(t, broker, 3))
	nack(t, broker, consume(t, broker, 3))
	const remedy = "fastpubsub dlq list s; then fastpubsub dlq reprocess s --all, or fastpubsub dlq purge s --all"
	want(t, examine(t, db), "dead_letters", doctor.Notice, remedy, "subscription s has 3 dead letters, the oldest for ", "the newest says: no luck")
	report := examine(t, db, limits(doctor.Limits{DeadLetters: 3, Deliveries: 1}))
	want(t, report, "dead_letters", doctor.Warning, remedy, "3 dead letters")
	want(t, report, "deliveries", doctor.Notice, "see lag and dead_letters", "deliveries has 3 rows, 3 dead")

	execSQL(t, db, "INSERT INTO {schema}.deliveries (xid, seq, next_at, created_at, sub, attempts, state, payload) "+
		"SELECT 3, i, now(), now(), 1000, 1, 'available', '{}' FROM generate_series(1, 20) i")
	db.SkipInvariants() // that is of no subscription
	report = examine(t, db, limits(doctor.Limits{Deliveries: 1}))
	want(t, report, "deliveries", doctor.Warning, "see lag and dead_letters", "deliveries has ")
	want(t, report, "orphans", doctor.Notice, "fastpubsub cleanup_stuck_messages", "1 deleted subscription has left 20 messages in deliveries")

	if err := broker.DeleteSubscription(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	report = examine(t, db)
	want(t, report, "orphans", doctor.Notice, "fastpubsub cleanup_stuck_messages", "2 deleted subscriptions have left 23 messages")
	want(t, report, "dead_letters", doctor.OK, "", "no dead letters")
	if _, err := broker.CleanupStuck(t.Context()); err != nil { // what that command does
		t.Fatal(err)
	}
	want(t, examine(t, db), "orphans", doctor.OK, "", "have left nothing")
}

func TestLeases(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	broker := subscribed(t, db)
	clock := db.StopClock(t)
	publish(t, broker, 5)
	msgs := consume(t, broker, 3)
	want(t, examine(t, db), "leases", doctor.OK, "", "no lease is held for long")
	if n, err := broker.Extend(t.Context(), "s", deliveries(msgs[:1]), 3*time.Hour); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	want(t, examine(t, db), "leases", doctor.Notice, "if that consumer is gone", "1 message is with consumers of subscription s for up to 3 h more", "worker-1")

	move(t, clock, time.Hour)
	const cleanup = "fastpubsub cleanup_stuck_messages"
	want(t, examine(t, db), "leases", doctor.Warning, cleanup, "the ack deadline of 2 messages of subscription s has passed, the first 59 min ago", "consumer worker-1")

	// A caller that acked, and has not committed, holds the lease.
	tx := begin(t, db, "SELECT 1")
	if n, err := broker.AckTx(t.Context(), tx, "s", []fastpubsub.ID{msgs[1].ID}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := broker.CleanupStuck(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, examine(t, db), "leases", doctor.Notice, "see writers", "1 lease has expired that a transaction has locked, or had, of subscription s")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	move(t, clock, 3*time.Hour)
	want(t, examine(t, db), "leases", doctor.Warning, cleanup, "the ack deadline of 1 message of subscription s has passed") // the extended one
	if _, err := broker.CleanupStuck(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, examine(t, db), "leases", doctor.OK, "", "no lease is held for long")
}

// Rows that vacuum may not remove, until it may.
func TestVacuum(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, map[string]string{"autovacuum": "off"})
	broker := subscribed(t, db)
	publish(t, broker, 200)
	nack(t, broker, consume(t, broker, 200))
	nack(t, broker, consume(t, broker, 200))
	db.Pool.Reset() // PostgreSQL 14 counts what an idle session did when it ends
	var f doctor.Finding
	waitFor(t, func() bool { // statistics come late
		var ok bool
		f, ok = find(examine(t, db, limits(doctor.Limits{Dead: 100})), "vacuum", "vacuum does not keep up")
		return ok
	})
	if f.Severity != doctor.Warning || !strings.Contains(f.Summary, "it was never vacuumed") {
		t.Errorf("%+v", f)
	}
	_, vacuum, _ := strings.Cut(f.Remedy, "; then ")
	execSQL(t, db, strings.TrimSuffix(vacuum, ";"))
	db.Pool.Reset()
	waitFor(t, func() bool {
		f, ok := find(examine(t, db, limits(doctor.Limits{Dead: 100})), "vacuum", "deliveries has ", "it was vacuumed ")
		return ok && f.Severity == doctor.OK
	})
}

// The server is the test's own, since anybody's snapshot keeps VACUUM from its work.
func TestBloat(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, nil)
	db.SkipInvariants()
	execSQL(t, db, "ALTER TABLE {schema}.deliveries SET (autovacuum_enabled = off)")
	execSQL(t, db, "INSERT INTO {schema}.deliveries (xid, seq, next_at, created_at, sub, attempts, state, payload) "+
		"SELECT 3, i, now(), now(), 1000, 1, 'available', repeat('x', 1500) FROM generate_series(1, 50000) i")
	execSQL(t, db, "DELETE FROM {schema}.deliveries WHERE seq % 10 < 9 AND seq < 49990")
	db.Pool.Reset()
	var report *doctor.Report
	wait := func(text string) { // statistics come late, and must have come before VACUUM reports its own
		t.Helper()
		waitFor(t, func() bool {
			report = examine(t, db)
			_, ok := find(report, "vacuum", text)
			return ok
		})
	}
	wait("44,990 dead")
	execSQL(t, db, "VACUUM {schema}.deliveries")
	execSQL(t, db, "ANALYZE {schema}.deliveries")
	wait(" would do")
	want(t, report, "vacuum", doctor.Notice, "the space will be used again", " would do")
	want(t, report, "options", doctor.Warning, db.SQL("ALTER TABLE {schema}.deliveries RESET (autovacuum_enabled);"), "autovacuum is off for deliveries")
}
