package fastpubsub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
)

// TestOthersDoNotWait holds what people hold, and looks whether publishing, consuming and deleting go on.
func TestOthersDoNotWait(t *testing.T) {
	t.Parallel()

	t.Run("ack in an open transaction", func(t *testing.T) {
		t.Parallel()
		b, db := newBroker(t)
		createTopic(t, b, "t")
		createSubscription(t, b, "s", "t", noFilter)
		ids := publish(t, b, "t", numbered(0, 10)...)
		consume(t, b, "s", 10)
		tx := begin(t, db, pgx.TxOptions{})
		if n, err := b.AckTx(t.Context(), tx, "s", ids[:5]); err != nil || n != 5 {
			t.Fatalf("acked %d, %v", n, err)
		}
		more := publish(t, b, "t", numbered(10, 10)...)
		if err := within(t, "consume", func(ctx context.Context) error { return wantDelivered(t, b, "s", 100, more...) }); err != nil {
			t.Error(err)
		}
		if err := within(t, "delete the subscription", func(ctx context.Context) error { return b.DeleteSubscription(ctx, "s") }); err != nil {
			t.Error(err)
		}
		commit(t, tx)
	})

	t.Run("single leases", func(t *testing.T) {
		t.Parallel()
		b, db := newBroker(t)
		createTopic(t, b, "t")
		createSubscription(t, b, "s", "t", noFilter)
		ids := publish(t, b, "t", numbered(0, 10)...)
		_, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Single: true})
		if err != nil {
			t.Fatal(err)
		}
		tx := begin(t, db, pgx.TxOptions{})
		if n, err := b.AckTx(t.Context(), tx, "s", ids[:1]); err != nil || n != 1 {
			t.Fatalf("acked %d, %v", n, err)
		}
		err = within(t, "ack the neighbours", func(ctx context.Context) error {
			n, err := b.Ack(ctx, "s", ids[1:])
			if n != 9 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		commit(t, tx)
	})

	// What pg_dump holds for as long as it runs.
	t.Run("share locks on all tables", func(t *testing.T) {
		t.Parallel()
		b, db := newBroker(t)
		createTopic(t, b, "t")
		createSubscription(t, b, "s", "t", noFilter)
		tx := begin(t, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		for _, table := range []string{"topics", "subscriptions", "messages", "cursors", "leases", "log_state"} {
			if _, err := tx.Exec(t.Context(), db.SQL(`LOCK TABLE {schema}.`+table+` IN ACCESS SHARE MODE`)); err != nil {
				t.Fatal(err)
			}
		}
		err := within(t, "publish, consume, ack", func(ctx context.Context) error {
			ids, err := b.Publish(ctx, "t", numbered(0, 10)...)
			if err != nil {
				return err
			}
			if err := wantDelivered(t, b, "s", 4, ids...); err != nil {
				return err
			}
			if n, err := b.Ack(ctx, "s", ids); err != nil || n != 10 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			return b.DeleteTopic(ctx, "t")
		})
		if err != nil {
			t.Error(err)
		}
	})

	t.Run("a claim that does not commit", func(t *testing.T) {
		t.Parallel()
		b, db := newBroker(t)
		createTopic(t, b, "t")
		createSubscription(t, b, "s", "t", noFilter)
		createSubscription(t, b, "other", "t", noFilter)
		tx := begin(t, db, pgx.TxOptions{})
		if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'stuck', 10, NULL, false)`)); err != nil {
			t.Fatal(err)
		}
		ids := publish(t, b, "t", numbered(0, 3)...)
		if err := wantDelivered(t, b, "other", 10, ids...); err != nil {
			t.Error(err)
		}
		_, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test"})
		if !errors.Is(err, fastpubsub.ErrBusy) {
			t.Errorf("consume returned %v, want %v", err, fastpubsub.ErrBusy)
		}
		commit(t, tx)
		if err := wantDelivered(t, b, "s", 10, ids...); err != nil {
			t.Error(err)
		}
	})
}

// TestClientThatDoesNotRead claims more than any buffer between server and client holds and does not read the answer: the
// claim is over all the same, and others go on with what it left.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	large := fastpubsub.NewMessage{Payload: fmt.Appendf(nil, `{"a":"%s"}`, bytes.Repeat([]byte("x"), 1<<20))}
	for range 50 {
		publish(t, b, "t", large)
	}
	publish(t, b, "t", numbered(0, 5)...)

	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	pipeline := conn.PgConn().StartPipeline(t.Context())
	for _, sql := range []string{
		`BEGIN ISOLATION LEVEL READ COMMITTED`,
		`SELECT {schema}.claim('s', 'stuck', 50, NULL, false)`,
		`COMMIT`,
		`SELECT xid, los, his, created_at, payloads, attributes FROM {schema}.claimed()`,
	} {
		pipeline.SendQueryParams(db.SQL(sql), nil, nil, nil, nil)
	}
	if err := pipeline.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := pipeline.Flush(); err != nil {
		t.Fatal(err)
	}
	defer conn.PgConn().Conn().Close() // what was not read is not waited for

	deadline := time.Now().Add(20 * time.Second)
	const taken = `SELECT coalesce(sum(upper(r) - lower(r)), 0) FROM {schema}.leases, unnest(remaining) r WHERE consumer = 'stuck'`
	for query[int](t, db, taken) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the claim did not commit")
		}
	}
	if waits := query[bool](t, db, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = (SELECT num FROM {schema}.subscriptions) AND classid = '{schema}.leases'::regclass)`); waits {
		t.Error("the lock is still held")
	}
	if got, want := len(drain(t, b, "s", 10)), 55-query[int](t, db, taken); got != want {
		t.Errorf("others got %d messages, want %d", got, want)
	}
}

// TestManyOpenTransactions lets a cursor pass transactions of many connections, with savepoints beyond what a snapshot
// lists, and lets them commit in another order than they began.
func TestManyOpenTransactions(t *testing.T) {
	t.Parallel()
	const transactions = 100
	b, db := newBroker(t, func(c *pgxpool.Config) { c.MaxConns = transactions + 10 })
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	createSubscription(t, b, "filtered", "t", `{"keep":[true]}`)
	keep, drop := fastpubsub.NewMessage{Payload: []byte(`{"keep":true}`)}, fastpubsub.NewMessage{Payload: []byte(`{"keep":false}`)}

	type open struct {
		tx  pgx.Tx
		ids []fastpubsub.ID
	}
	var all []open
	for i := range transactions {
		o := open{tx: begin(t, db, pgx.TxOptions{})}
		if i%10 == 0 { // more than the 64 subtransactions that a snapshot keeps track of
			for range 70 {
				err := pgx.BeginFunc(t.Context(), o.tx, func(savepoint pgx.Tx) error {
					o.ids = append(o.ids, publishTx(t, b, savepoint, "t", keep, drop)[0])
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		} else {
			o.ids = publishTx(t, b, o.tx, "t", keep, drop, drop)[:1]
		}
		all = append(all, o)
	}
	last := publish(t, b, "t", keep, drop)[0]
	for _, sub := range []string{"s", "filtered"} {
		var got []fastpubsub.ID
		for {
			ids := idsOf(consume(t, b, sub, 100))
			if len(ids) == 0 {
				break
			}
			got = append(got, ids...)
		}
		if !slices.Contains(got, last) || len(got) > 2 {
			t.Fatalf("%s got %v while all others were open", sub, got)
		}
	}

	kept, total := 0, 0
	for i, o := range append(slices.Clone(all[transactions/2:]), all[:transactions/2]...) {
		if i%7 == 0 {
			if err := o.tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		commit(t, o.tx)
		kept += len(o.ids)
		if len(o.ids) > 1 {
			total += 2 * len(o.ids)
		} else {
			total += 3
		}
		if i%20 == 0 {
			kept -= len(drain(t, b, "filtered", 3))
		}
	}
	if got := len(drain(t, b, "filtered", 3)); got != kept {
		t.Errorf("filtered got %d messages, want %d", got, kept)
	}
	if got := len(drain(t, b, "s", 100)); got != total {
		t.Errorf("s got %d messages, want %d", got, total)
	}
	if late := query[[]int64](t, db, `SELECT late_xids FROM {schema}.cursors c JOIN {schema}.subscriptions s ON s.num = c.sub
	                                  WHERE s.id = 's' ORDER BY gen DESC LIMIT 1`); len(late) > 0 {
		// Tests that run beside this one have transactions open too.
		running := query[int](t, db, `SELECT count(*) FROM unnest($1::bigint[]) x
			WHERE x::text::xid8 < pg_snapshot_xmin(pg_current_snapshot())`, late)
		if running > 0 {
			t.Errorf("%d finished transactions are still late", running)
		}
	}
}

// TestPreparedTransaction publishes in a transaction that outlives its connection.
func TestPreparedTransaction(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	if query[string](t, db, `SELECT current_setting('max_prepared_transactions')`) == "0" {
		t.Skip("the server has max_prepared_transactions = 0")
	}
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	var prepared []fastpubsub.ID
	for i := range 2 {
		tx := begin(t, db, pgx.TxOptions{})
		prepared = append(prepared, publishTx(t, b, tx, "t", numbered(i, 1)...)...)
		if _, err := tx.Exec(t.Context(), fmt.Sprintf(`PREPARE TRANSACTION '%s %d'`, db.Schema, i)); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil && !errors.Is(err, pgx.ErrTxCommitRollback) {
			t.Fatal(err)
		}
	}
	others := publish(t, b, "t", numbered(2, 2)...)
	if err := wantDelivered(t, b, "s", 10, others...); err != nil {
		t.Error(err)
	}
	exec(t, db, fmt.Sprintf(`COMMIT PREPARED '%s 0'`, db.Schema))
	exec(t, db, fmt.Sprintf(`ROLLBACK PREPARED '%s 1'`, db.Schema))
	if err := wantDelivered(t, b, "s", 10, prepared[0]); err != nil {
		t.Error(err)
	}
}

// TestDeleteUnderLoad deletes and re-creates a topic and its subscription while others publish to it and consume from
// it. Nobody gets an error but ErrNotFound, and the new one gets nothing of the old.
func TestDeleteUnderLoad(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var g errgroup.Group
	tolerate := func(f func() error) func() error {
		return func() error {
			for ctx.Err() == nil {
				if err := f(); err != nil && !errors.Is(err, fastpubsub.ErrNotFound) {
					return err
				}
			}
			return nil
		}
	}
	for i := range 3 {
		g.Go(tolerate(func() error {
			_, err := b.Publish(t.Context(), "t", numbered(0, 1+10*i)...)
			return err
		}))
		g.Go(tolerate(func() error {
			msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: 7})
			if err != nil {
				return err
			}
			_, err = b.Ack(t.Context(), "s", idsOf(msgs))
			return err
		}))
	}
	for i := range 20 {
		var err error
		if i%2 == 0 {
			if err = b.DeleteTopic(t.Context(), "t"); err == nil {
				createTopic(t, b, "t")
			}
		} else {
			err = b.DeleteSubscription(t.Context(), "s")
		}
		if err != nil {
			t.Fatal(err)
		}
		createSubscription(t, b, "s", "t", noFilter)
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}

	publish(t, b, "t", numbered(0, 5)...)
	consume(t, b, "s", 1)
	if err := b.DeleteTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test"}); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("consume from a subscription of a deleted topic returned %v", err)
	}
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	if err := wantDelivered(t, b, "s", 10); err != nil {
		t.Errorf("after the topic was created again: %v", err)
	}
}

// TestSubscribeToATopicThatIsBeingDeleted creates a subscription while another transaction deletes its topic.
func TestSubscribeToATopicThatIsBeingDeleted(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	tx := begin(t, db, pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), db.SQL(`DELETE FROM {schema}.topics`)); err != nil {
		t.Fatal(err)
	}
	var got error
	var g errgroup.Group
	g.Go(func() error {
		_, got = b.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: "s", TopicID: "t"})
		return nil
	})
	waitForLockWaits(t, db, 1)
	commit(t, tx)
	g.Wait()
	if !errors.Is(got, fastpubsub.ErrNotFound) {
		t.Errorf("got %v, want %v", got, fastpubsub.ErrNotFound)
	}
}

// TestManySubscriptions deletes a topic with so many subscriptions that a lock for each would exhaust the lock table.
func TestManySubscriptions(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	exec(t, db, `INSERT INTO {schema}.subscriptions (id, topic_num, max_delivery_attempts, backoff_min_seconds, backoff_max_seconds, ack_deadline_seconds)
	             SELECT 's' || i, 1, 5, 5, 300, 60 FROM generate_series(1, 30000) i`)
	publish(t, b, "t", numbered(0, 1)...)
	if err := within(t, "delete", func(ctx context.Context) error { return b.DeleteTopic(ctx, "t") }); err != nil {
		t.Error(err)
	}
	if n := query[int](t, db, `SELECT count(*) FROM {schema}.subscriptions`); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
}
