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
		for _, table := range []string{"topics", "subscriptions", "messages", "cursors", "leases", "deliveries", "held_leases", "log_state"} {
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
			if n, err := b.Ack(ctx, "s", ids[1:]); err != nil || n != 9 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			if n, err := b.Nack(ctx, "s", []fastpubsub.Delivery{{ID: ids[0]}}, fastpubsub.NackOptions{Immediate: true}); err != nil || n != 1 {
				return fmt.Errorf("nacked %d, %w", n, err)
			}
			if err := wantDelivered(t, b, "s", 4, ids[0]); err != nil {
				return err
			}
			if _, err := b.CleanupStuck(ctx); err != nil {
				return err
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

	t.Run("a log that somebody has locked", func(t *testing.T) {
		t.Parallel()
		b, db := newBroker(t)
		createTopic(t, b, "t")
		createSubscription(t, b, "s", "t", noFilter)
		ids := publish(t, b, "t", numbered(0, 3)...)
		tx := begin(t, db, pgx.TxOptions{})
		if _, err := tx.Exec(t.Context(), db.SQL(`LOCK TABLE {schema}.messages IN ACCESS EXCLUSIVE MODE`)); err != nil {
			t.Fatal(err)
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

// TestHeldRows keeps a transaction open that has acked or nacked messages past their deadlines, in leases and in deliveries,
// and looks whether everybody else goes on: nobody waits, and nothing is lost when the transaction rolls back.
func TestHeldRows(t *testing.T) {
	t.Parallel()
	for _, hold := range []struct {
		name string
		in   func(b *fastpubsub.Broker, tx pgx.Tx, msgs []fastpubsub.Message) (int, error)
	}{
		{"acked", func(b *fastpubsub.Broker, tx pgx.Tx, msgs []fastpubsub.Message) (int, error) {
			return b.AckTx(context.Background(), tx, "s", idsOf(msgs))
		}},
		{"nacked", func(b *fastpubsub.Broker, tx pgx.Tx, msgs []fastpubsub.Message) (int, error) {
			return b.NackTx(context.Background(), tx, "s", deliveriesOf(msgs), fastpubsub.NackOptions{})
		}},
	} {
		for _, from := range []string{"leases", "deliveries"} {
			t.Run(hold.name+" from "+from, func(t *testing.T) {
				t.Parallel()
				b, db := newBroker(t)
				move := stopClock(t, db)
				createTopic(t, b, "t")
				createSubscription(t, b, "s", "t", noFilter)
				ids := publish(t, b, "t", numbered(0, 20)...)
				msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: 20, Single: true})
				if err != nil {
					t.Fatal(err)
				}
				if from == "deliveries" {
					move(time.Hour)
					msgs = consume(t, b, "s", 20)
				}
				tx := begin(t, db, pgx.TxOptions{})
				if n, err := hold.in(b, tx, msgs[:10]); err != nil || n != 10 {
					t.Fatalf("%s %d, %v", hold.name, n, err)
				}
				err = within(t, "others", func(ctx context.Context) error {
					if n, err := b.Nack(ctx, "s", deliveriesOf(msgs[10:12]), fastpubsub.NackOptions{Immediate: true}); err != nil || n != 2 {
						return fmt.Errorf("nacked %d, %w", n, err)
					}
					if n, err := b.Extend(ctx, "s", deliveriesOf(msgs[12:14]), time.Minute); err != nil || n != 2 {
						return fmt.Errorf("extended %d, %w", n, err)
					}
					if n, err := b.Ack(ctx, "s", ids[14:16]); err != nil || n != 2 {
						return fmt.Errorf("acked %d, %w", n, err)
					}
					more, err := b.Publish(ctx, "t", numbered(20, 5)...)
					if err != nil {
						return err
					}
					move(time.Hour) // all leases have run out
					for range 2 {
						if _, err := b.CleanupStuck(ctx); err != nil {
							return err
						}
					}
					if _, err := b.Metrics(ctx, "s"); err != nil {
						return err
					}
					want := append(slices.Concat(ids[10:14], ids[16:]), more...)
					if err := wantDelivered(t, b, "s", 3, want...); err != nil {
						return err
					}
					n, err := b.Ack(ctx, "s", want)
					if err != nil || n != len(want) {
						return fmt.Errorf("acked %d of %d, %w", n, len(want), err)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
				move(time.Hour)
				if err := wantDelivered(t, b, "s", 7, ids[:10]...); err != nil {
					t.Error(err)
				}
				err = within(t, "delete", func(ctx context.Context) error { return b.DeleteSubscription(ctx, "s") })
				if err != nil {
					t.Error(err)
				}
				if _, err := b.CleanupStuck(t.Context()); err != nil {
					t.Error(err)
				}
				if n := query[int](t, db, `SELECT count(*) FROM {schema}.deliveries`) + query[int](t, db, `SELECT count(*) FROM {schema}.held_leases`); n > 0 {
					t.Errorf("%d rows are left of the deleted subscription", n)
				}
			})
		}
	}
}

// TestHeldSubscription keeps the lock of a subscription: only what consumes from it waits, for a second.
func TestHeldSubscription(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	clock := db.StopClock(t)
	createTopic(t, b, "t")
	createRetrying(t, b, "s", "t", 1)
	createRetrying(t, b, "other", "t", 1)
	ids := publish(t, b, "t", numbered(0, 10)...)
	msgs := consume(t, b, "s", 10)
	consume(t, b, "other", 10)
	tx := begin(t, db, pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'stuck', 10, NULL, false)`)); err != nil {
		t.Fatal(err)
	}
	err := within(t, "others", func(ctx context.Context) error {
		if n, err := b.Ack(ctx, "s", ids[:2]); err != nil || n != 2 {
			return fmt.Errorf("acked %d, %w", n, err)
		}
		if n, err := b.Nack(ctx, "s", deliveriesOf(msgs[2:4]), fastpubsub.NackOptions{}); err != nil || n != 2 {
			return fmt.Errorf("nacked %d, %w", n, err)
		}
		if n, err := b.Extend(ctx, "s", deliveriesOf(msgs[4:6]), 2*time.Hour); err != nil || n != 2 {
			return fmt.Errorf("extended %d, %w", n, err)
		}
		if n, err := b.Reprocess(ctx, "s", ids[2:3]); err != nil || n != 1 {
			return fmt.Errorf("reprocessed %d, %w", n, err)
		}
		if n, err := b.Purge(ctx, "s", ids[3:4]); err != nil || n != 1 {
			return fmt.Errorf("purged %d, %w", n, err)
		}
		wantMetrics(t, b, "s", fastpubsub.Metrics{Available: 1, Delivered: 6, Acked: 2})
		if err := clock.Move(ctx, time.Hour); err != nil {
			return err
		}
		stuck, err := b.CleanupStuck(ctx)
		if want := (fastpubsub.Stuck{DeadLetters: 10, Busy: 1}); err != nil || stuck != want {
			return fmt.Errorf("cleanup did %+v, want %+v, %w", stuck, want, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	commit(t, tx)
	wantStuck(t, b, fastpubsub.Stuck{DeadLetters: 4})
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
		`SELECT xid, los, his, created_at, payloads, attributes, attempts FROM {schema}.claimed()`,
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

	deadline := time.Now().Add(time.Minute)
	const taken = `SELECT coalesce(sum(upper(r) - lower(r)), 0) FROM {schema}.leases, unnest(remaining) r WHERE consumer = 'stuck'`
	for query[int](t, db, taken) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the claim did not commit")
		}
	}
	const locked = `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = (SELECT num FROM {schema}.subscriptions) AND classid = '{schema}.leases'::regclass)`
	for query[bool](t, db, locked) { // a commit is visible a moment before its locks are gone
		if time.Now().After(deadline) {
			t.Fatal("the lock is still held")
		}
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

// TestManyFinishedTransactions lets more transactions end at once than one claim looks at, of which the last alone has published.
func TestManyFinishedTransactions(t *testing.T) {
	t.Parallel()
	const others = 70
	b, db := newBroker(t, func(c *pgxpool.Config) { c.MaxConns = others + 10 })
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	createSubscription(t, b, "filtered", "t", `{"n":[0, 1]}`)
	var all []pgx.Tx
	for range others {
		tx := begin(t, db, pgx.TxOptions{})
		if _, err := tx.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
		all = append(all, tx)
	}
	publisher := begin(t, db, pgx.TxOptions{})
	late := publishTx(t, b, publisher, "t", numbered(0, 1)...)
	passed := publish(t, b, "t", numbered(1, 1)...)
	for _, sub := range []string{"s", "filtered"} {
		if got := idsOf(consume(t, b, sub, 10)); !slices.Equal(got, passed) {
			t.Fatalf("%s got %v, want %v", sub, got, passed)
		}
	}
	for _, tx := range append(all, publisher) {
		commit(t, tx)
	}
	for _, sub := range []string{"s", "filtered"} {
		if got := idsOf(consume(t, b, sub, 10)); !slices.Equal(got, late) {
			t.Errorf("%s got %v after the commit, want %v", sub, got, late)
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
