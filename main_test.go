package fastpubsub_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// newBroker returns a broker on a schema of its own, and the schema.
func newBroker(t testing.TB, options ...func(*pgxpool.Config)) (*fastpubsub.Broker, *storetest.DB) {
	t.Helper()
	db := storetest.New(t, append([]func(*pgxpool.Config){func(c *pgxpool.Config) { c.MaxConns = 20 }}, options...)...)
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	return broker, db
}

// maintainedBroker is another broker on the same schema, whose CleanupAcked(ctx, 0) moves everything out of slots at once, and
// waits for no snapshots.
func maintainedBroker(t testing.TB, db *storetest.DB) *fastpubsub.Broker {
	t.Helper()
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{
		Schema: db.Schema, Maintenance: fastpubsub.MaintenanceSettings{SpillAfter: 1, Patience: 1}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return broker
}

func createTopic(t testing.TB, b *fastpubsub.Broker, id string) {
	t.Helper()
	if _, err := b.CreateTopic(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func createSubscription(t testing.TB, b *fastpubsub.Broker, id, topicID string, filter string) {
	t.Helper()
	sub := fastpubsub.Subscription{ID: id, TopicID: topicID}
	if err := sub.Filter.UnmarshalJSON([]byte(filter)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
}

const noFilter = "null"

// numbered returns n messages {"n": from}, {"n": from+1} and so on.
func numbered(from, n int) []fastpubsub.NewMessage {
	msgs := make([]fastpubsub.NewMessage, n)
	for i := range msgs {
		msgs[i].Payload = fmt.Appendf(nil, `{"n":%d}`, from+i)
	}
	return msgs
}

func publish(t testing.TB, b *fastpubsub.Broker, topicID string, msgs ...fastpubsub.NewMessage) []fastpubsub.ID {
	t.Helper()
	ids, err := b.Publish(t.Context(), topicID, msgs...)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func publishTx(t testing.TB, b *fastpubsub.Broker, tx pgx.Tx, topicID string, msgs ...fastpubsub.NewMessage) []fastpubsub.ID {
	t.Helper()
	ids, err := b.PublishTx(t.Context(), tx, topicID, msgs...)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func begin(t testing.TB, db *storetest.DB, options pgx.TxOptions) pgx.Tx {
	t.Helper()
	tx, err := db.Pool.BeginTx(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback(context.Background()) })
	return tx
}

func commit(t testing.TB, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// consume takes one batch of up to max messages.
func consume(t testing.TB, b *fastpubsub.Broker, subscriptionID string, max int) []fastpubsub.Message {
	t.Helper()
	msgs, err := b.Consume(t.Context(), subscriptionID, fastpubsub.ConsumeOptions{Consumer: "test", Max: max})
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

// drain consumes in batches of max until nothing comes, and acks everything.
func drain(t testing.TB, b *fastpubsub.Broker, subscriptionID string, max int) []fastpubsub.ID {
	t.Helper()
	var all []fastpubsub.ID
	for {
		msgs := consume(t, b, subscriptionID, max)
		if len(msgs) == 0 {
			return all
		}
		ids := idsOf(msgs)
		n, err := b.Ack(t.Context(), subscriptionID, ids)
		if err != nil {
			t.Fatal(err)
		}
		if n != len(ids) {
			t.Fatalf("acked %d of %d messages", n, len(ids))
		}
		all = append(all, ids...)
	}
}

func idsOf(msgs []fastpubsub.Message) []fastpubsub.ID {
	ids := make([]fastpubsub.ID, len(msgs))
	for i, m := range msgs {
		ids[i] = m.ID
	}
	return ids
}

func exec(t testing.TB, db *storetest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), db.SQL(sql), args...); err != nil {
		t.Fatal(err)
	}
}

func query[T any](t testing.TB, db *storetest.DB, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := db.Pool.QueryRow(t.Context(), db.SQL(sql), args...).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// waitForOpen returns once the transactions have ended that are open now, in this database or another: a consumer stops at the
// oldest.
func waitForOpen(t testing.TB, db *storetest.DB) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	last := query[int64](t, db, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`)
	for query[int64](t, db, `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint`) < last {
		if time.Now().After(deadline) {
			t.Fatal("a transaction stays open")
		}
		time.Sleep(time.Millisecond)
	}
}

// waitForLockWaits returns once n statements of this schema wait for locks.
func waitForLockWaits(t testing.TB, db *storetest.DB, n int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for query[int](t, db, `SELECT count(*) FROM pg_stat_activity
	                       WHERE wait_event_type = 'Lock' AND query LIKE '%"' || $1 || '"%'`, db.Schema) < n {
		if time.Now().After(deadline) {
			t.Fatalf("there are not %d statements that wait for locks", n)
		}
	}
}

// stopClock stops the clock of a schema and returns what moves it.
func stopClock(t testing.TB, db *storetest.DB) (move func(d time.Duration)) {
	t.Helper()
	clock := db.StopClock(t)
	return func(d time.Duration) {
		t.Helper()
		if err := clock.Move(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
}
