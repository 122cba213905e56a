package fastpubsub_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// openHazards come from transactions that are open while others publish, subscribe or consume, or that do several of these.
var openHazards = []hazard{
	{
		name: "a transaction that commits after a later one was consumed",
		protections: []protection{
			{"claim", "IF new_xid > ANY (taken.open_xids) THEN", "IF false THEN"},
			{"scan_late", "WHERE pg_visible_in_snapshot(x::text::xid8, c.s)", "WHERE true"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			slow := begin(t, db, pgx.TxOptions{})
			late := publishTx(t, b, slow, "t", numbered(0, 3)...)
			fast := publish(t, b, "t", numbered(3, 2)...)
			if err := wantDelivered(t, b, "s", 10, fast...); err != nil {
				return fmt.Errorf("before the slow one commits: %w", err)
			}
			commit(t, slow)
			return wantDelivered(t, b, "s", 10, late...)
		},
	},
	{
		name: "a late transaction of several record batches, taken one message at a time",
		protections: []protection{
			// A limit that counts rows which are skipped afterwards ends late transactions early.
			{"scan_late", "end_seq := end_seq | 65535;", "NULL;"},
			// The first row may only be taken alone if it overtakes nobody.
			{"scan_main", "WHERE x::text::bigint > cursor_xid)  -- protection: stop before open", "WHERE false)"},
			{"scan_main", "end_seq := CASE WHEN lo + budget = hi THEN first.base | 65535 ELSE lo + budget - 1 END;", "end_seq := lo + budget - 1;"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			slow := begin(t, db, pgx.TxOptions{})
			var late []fastpubsub.ID
			for i := range 5 {
				late = append(late, publishTx(t, b, slow, "t", numbered(3*i, 3)...)...)
			}
			fast := publish(t, b, "t", numbered(15, 3)...)
			fast = append(fast, publish(t, b, "t", numbered(18, 2)...)...)
			if err := wantDelivered(t, b, "s", 1, fast...); err != nil {
				return fmt.Errorf("before the slow one commits: %w", err)
			}
			commit(t, slow)
			return wantDelivered(t, b, "s", 1, late...)
		},
	},
	{
		name:        "a publisher in progress while a subscription is created",
		protections: []protection{{"log_end", "FROM pg_snapshot_xip(s) x", "FROM pg_snapshot_xip(s) x WHERE false"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			publish(t, b, "t", numbered(0, 1)...)
			slow := begin(t, db, pgx.TxOptions{})
			late := publishTx(t, b, slow, "t", numbered(1, 2)...)
			publish(t, b, "t", numbered(3, 1)...) // its id is higher than the open one's
			createSubscription(t, b, "s", "t", noFilter)
			if err := wantDelivered(t, b, "s", 10); err != nil {
				return fmt.Errorf("before the slow one commits: %w", err)
			}
			commit(t, slow)
			return wantDelivered(t, b, "s", 10, late...)
		},
	},
	{
		name: "a claim that says it has left nothing",
		protections: []protection{
			{"scan_main", "NOT EXISTS (SELECT FROM pg_snapshot_xip(pg_current_snapshot()) x WHERE x::text::bigint > cursor_xid)",
				"true"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			said := 0
			for range 10 { // others' transactions come between now and then
				publish(t, b, "t", numbered(0, 1)...)
				slow := begin(t, db, pgx.TxOptions{})
				publishTx(t, b, slow, "t", numbered(1, 1)...)
				for i := range 4 {
					publish(t, b, "t", numbered(2*i, 2)...) // their ids are higher than the open one's
				}
				n, err := claimLeavesNothing(t, db, "s", 3)
				if err != nil {
					return err
				}
				said += n
				commit(t, slow)
				if n, err = claimLeavesNothing(t, db, "s", 3); err != nil {
					return err
				}
				said += n
			}
			if said == 0 {
				return errors.New("no claim says that it has left nothing")
			}
			return nil
		},
	},
	{
		name: "a transaction that subscribes and publishes",
		protections: []protection{
			{"log_end", "UNION SELECT own_xid WHERE own_xid", "UNION SELECT own_xid WHERE false AND own_xid"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			tx := begin(t, db, pgx.TxOptions{})
			before := publishTx(t, b, tx, "t", numbered(0, 1)...) // gives it an id
			publish(t, b, "t", numbered(1, 1)...)                 // with a higher id, over before the subscription
			var outcome string
			err := tx.QueryRow(t.Context(), db.SQL(`SELECT {schema}.create_subscription('s', 't', NULL, NULL, 5, 5, 300, 60)`)).Scan(&outcome)
			if err != nil || outcome != "created" {
				return fmt.Errorf("%s, %w", outcome, err)
			}
			after := publishTx(t, b, tx, "t", numbered(2, 1)...)
			commit(t, tx)
			return wantDelivered(t, b, "s", 10, append(before, after...)...)
		},
	},
	{
		name:        "a consumer that has published in the same transaction",
		protections: []protection{{"claim", "IF pg_current_xact_id_if_assigned() IS NOT NULL THEN", "IF false THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			tx := begin(t, db, pgx.TxOptions{})
			publishTx(t, b, tx, "t", numbered(0, 1)...)
			_, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'test', 10, NULL, false)`))
			return wantCode(err, "25000")
		},
	},
	{
		name:        "a consumer whose cursor is older than its lock",
		protections: []protection{{"claim", "IF current_setting('transaction_isolation') <> 'read committed' THEN", "IF false THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 1)...)
			tx := begin(t, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
			if _, err := tx.Exec(t.Context(), `SELECT 1`); err != nil { // takes the snapshot
				return err
			}
			consume(t, b, "s", 10)
			_, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'test', 10, NULL, false)`))
			return wantCode(err, "25000")
		},
	},
	{
		name: "transactions that others have open need not become late",
		protections: []protection{
			{"scan_main", "WHERE x::text::bigint > cursor_xid)\n                    ORDER BY m.xid", "WHERE false)\n                    ORDER BY m.xid"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			// Tests that run beside this one have transactions open too, and one of those may come between.
			var err error
			for i := range 20 {
				if err = stopsBeforeOpen(t, b, db, fmt.Sprint("s", i)); err == nil {
					break
				}
			}
			return err
		},
	},
	{
		name:        "ids of a transaction that does not wait for its commit to be written",
		protections: []protection{{"publish", "IF current_setting('synchronous_commit') = 'off' THEN", "IF false THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			for level, want := range map[string]string{"off": "local", "local": "local", "on": "on"} {
				tx := begin(t, db, pgx.TxOptions{})
				if _, err := tx.Exec(t.Context(), `SET LOCAL synchronous_commit = `+level); err != nil {
					return err
				}
				publishTx(t, b, tx, "t", numbered(0, 1)...)
				var got string
				if err := tx.QueryRow(t.Context(), `SELECT current_setting('synchronous_commit')`).Scan(&got); err != nil {
					return err
				}
				if got != want {
					return fmt.Errorf("synchronous_commit %s became %s, want %s", level, got, want)
				}
				commit(t, tx)
			}
			return nil
		},
	},
	{
		name:        "a claim for nothing, beside a late transaction that has finished",
		protections: []protection{{"claim", "IF wanted > 0 AND room > 0 AND cardinality(late_xids) > 0 THEN", "IF cardinality(late_xids) > 0 THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			slow := begin(t, db, pgx.TxOptions{})
			late := publishTx(t, b, slow, "t", numbered(0, 3)...)
			fast := publish(t, b, "t", numbered(3, 2)...)
			if err := wantDelivered(t, b, "s", 10, fast...); err != nil {
				return fmt.Errorf("before the slow one commits: %w", err)
			}
			commit(t, slow)
			exec(t, db, `SELECT {schema}.claim('s', 'test', 0, NULL, false)`)
			return wantDelivered(t, b, "s", 10, late...)
		},
	},
	{
		// In one transaction; that no lease is written before the last scan keeps its id above the cursor.
		name: "a consumer that publishes after it has claimed late messages",
		protections: []protection{{"claim", "late_stretches := cardinality(taken.xids);",
			"late_stretches := cardinality(taken.xids); PERFORM pg_current_xact_id(), pg_sleep(0.5);"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			slow := begin(t, db, pgx.TxOptions{})
			late := publishTx(t, b, slow, "t", numbered(0, 1)...)
			fast := publish(t, b, "t", numbered(1, 1)...)
			if err := wantDelivered(t, b, "s", 10, fast...); err != nil {
				return err
			}
			commit(t, slow)
			done := make(chan struct{})
			var g errgroup.Group
			g.Go(func() error { // what the cursor moves to meanwhile
				for {
					select {
					case <-done:
						return nil
					default:
						if _, err := b.Publish(t.Context(), "t", numbered(2, 1)...); err != nil {
							return err
						}
					}
				}
			})
			tx := begin(t, db, pgx.TxOptions{})
			_, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'test', 1000, NULL, false)`))
			close(done)
			if err := errors.Join(err, g.Wait()); err != nil {
				return err
			}
			own := publishTx(t, b, tx, "t", numbered(3, 1)...)
			commit(t, tx)
			rest, err := consumeIDs(t, b, "s", 1000)
			for more := rest; len(more) > 0 && err == nil; {
				more, err = consumeIDs(t, b, "s", 1000)
				rest = append(rest, more...)
			}
			if !slices.Contains(rest, own[0]) || slices.Contains(rest, late[0]) {
				return fmt.Errorf("its own message is not among the %d that came then, %w", len(rest), err)
			}
			return nil
		},
	},
	{
		name:        "a redelivery in a transaction that publishes afterwards",
		protections: []protection{{"claim", "IF own_xid > state.xid AND own_xid < new_xid THEN", "IF false THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 1)...)
			msgs := consume(t, b, "s", 10)
			if n, err := b.Nack(t.Context(), "s", deliveriesOf(msgs), fastpubsub.NackOptions{Immediate: true}); err != nil || n != 1 {
				return fmt.Errorf("nacked %d, %w", n, err)
			}
			exec(t, db, `UPDATE {schema}.cursors SET due_to = '-infinity'`) // as if some time had passed
			// The claim pauses between the redelivery, which gives it an id, and the scan, so that a later transaction commits.
			const pause = 4711
			definition := query[string](t, db, `SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = 'claim' AND pronamespace = $1::regnamespace`, db.Schema)
			const line = "own_xid := pg_current_xact_id_if_assigned()"
			if strings.Count(definition, line) != 1 {
				t.Fatalf("claim has %q %d times", line, strings.Count(definition, line))
			}
			exec(t, db, strings.Replace(definition, line, fmt.Sprintf("PERFORM pg_advisory_xact_lock(%d, sub_num); ", pause)+line, 1))
			gate := begin(t, db, pgx.TxOptions{})
			if _, err := gate.Exec(t.Context(), db.SQL(`SELECT pg_advisory_xact_lock($1, num) FROM {schema}.subscriptions`), pause); err != nil {
				return err
			}
			tx := begin(t, db, pgx.TxOptions{})
			var g errgroup.Group
			g.Go(func() error {
				_, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'test', 10, NULL, false)`))
				return err
			})
			waitForLockWaits(t, db, 1)
			publish(t, b, "t", numbered(1, 1)...)
			commit(t, gate)
			if err := g.Wait(); err != nil {
				return err
			}
			own := publishTx(t, b, tx, "t", numbered(2, 1)...)
			commit(t, tx)
			return wantDelivered(t, b, "s", 10, own...)
		},
	},
	{
		name:        "a topic that is deleted and created again between the record batches of a publish",
		protections: []protection{{"publish", "AND t.num = coalesce(topic, t.num)  -- protection: one topic", ""}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			open := gate(t, db, "publish", "positions := positions || written;")
			var g errgroup.Group
			g.Go(func() error {
				if _, err := b.Publish(t.Context(), "t", numbered(0, 600)...); !errors.Is(err, fastpubsub.ErrNotFound) {
					return fmt.Errorf("publish returned %v, want %v", err, fastpubsub.ErrNotFound)
				}
				return nil
			})
			waitAtGate(t, db, "publish", &g)
			if err := b.DeleteTopic(t.Context(), "t"); err != nil {
				return err
			}
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			open()
			published := g.Wait()
			return errors.Join(published, wantDelivered(t, b, "s", 1000))
		},
	},
}

// stopsBeforeOpen publishes before and behind a transaction that stays open; a consumer must get what is before it, alone.
func stopsBeforeOpen(t testing.TB, b *fastpubsub.Broker, db *storetest.DB, subscriptionID string) error {
	t.Helper()
	createSubscription(t, b, subscriptionID, "t", noFilter)
	before := publish(t, b, "t", numbered(0, 1)...)
	open := begin(t, db, pgx.TxOptions{})
	defer open.Rollback(t.Context())
	var xid int64
	if err := open.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		return err
	}
	publish(t, b, "t", numbered(1, 1)...)
	if got := idsOf(consume(t, b, subscriptionID, 10)); !slices.Equal(got, before) {
		return fmt.Errorf("got %v first, want %v", got, before)
	}
	late := query[[]int64](t, db, `SELECT late_xids FROM {schema}.cursors c JOIN {schema}.subscriptions s ON s.num = c.sub AND s.id = $1
		ORDER BY gen DESC LIMIT 1`, subscriptionID)
	if slices.Contains(late, xid) {
		return fmt.Errorf("%d is late", xid)
	}
	return nil
}

// claimLeavesNothing claims until nothing comes. It returns how many claims said that they had left nothing, which is an error if
// another one gets something.
func claimLeavesNothing(t testing.TB, db *storetest.DB, subscriptionID string, max int) (said int, err error) {
	t.Helper()
	s := store.New(db.Schema)
	for {
		batches, left, err := s.Claim(t.Context(), db.Pool, store.Claim{SubscriptionID: subscriptionID, Consumer: "test", Max: max})
		if err != nil || len(batches) == 0 {
			return said, err
		}
		if said > 0 {
			return said, fmt.Errorf("got messages of %d record batches after a claim that had left nothing", len(batches))
		}
		if left == store.LeftNothing {
			said++
		}
	}
}
