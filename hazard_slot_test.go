package fastpubsub_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// slotHazards come from slots that are truncated.
var slotHazards = []hazard{
	{
		name: "a slot of the log with messages that a subscription has not had",
		protections: []protection{
			{"truncate_slot", "IF needed THEN  -- protection: needed", "IF false THEN"},
			{"message_slot_needs", "(c.xid, (c.seq + 1) & ~65535::bigint)  -- protection: beyond the cursor", "(c.xid, (c.seq + 1) & ~65535::bigint) AND false"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 2)...)
			truncate(t, db, "messages", false, time.Minute)
			return wantDelivered(t, b, "s", 10, ids...)
		},
	},
	{
		name:        "a slot of the log with messages of a late transaction",
		protections: []protection{{"message_slot_needs", "AND m.base >= (l.seq + 1) & ~65535::bigint  -- protection: late", "AND false"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			open := begin(t, db, pgx.TxOptions{})
			late := publishTx(t, b, open, "t", numbered(0, 1)...)
			beyond := publish(t, b, "t", numbered(1, 1)...)
			if got := drain(t, b, "s", 10); !slices.Equal(got, beyond) { // nothing lies before the open transaction
				return fmt.Errorf("got %v, want %v", got, beyond)
			}
			commit(t, open)
			truncate(t, db, "messages", false, time.Minute)
			return wantDelivered(t, b, "s", 10, late...)
		},
	},
	{
		name:        "a slot of the log with messages that are leased",
		protections: []protection{{"message_slot_needs", "l.last_xid, l.last_seq, l.remaining))  -- protection: leased", "l.last_xid, l.last_seq, '{}'))"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 2)...)
			if err := wantDelivered(t, b, "s", 10, ids...); err != nil {
				return err
			}
			truncate(t, db, "messages", false, time.Minute)
			move(time.Hour)
			again, err := consumeIDs(t, b, "s", 10)
			if err != nil || !slices.Equal(again, ids) {
				return fmt.Errorf("got %v, want %v; %w", again, ids, err)
			}
			return nil
		},
	},
	{
		name: "a slot of leases that is needed",
		protections: []protection{
			{"truncate_slot", "IF needed THEN  -- protection: needed", "IF false THEN"},
			{"lease_slot_needs", "WHERE c.slot = lease_slot_needs.slot  -- protection: the newest cursor", "WHERE false"},
			{"lease_slot_needs", "AND l.deadline > c.swept_to  -- protection: not swept", "AND false"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			truncate(t, db, "leases", false, time.Minute) // the cursor is there
			first := publish(t, b, "t", numbered(0, 2)...)
			if err := wantDelivered(t, b, "s", 10, first...); err != nil {
				return err
			}
			if n, err := b.Ack(t.Context(), "s", first[1:]); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			second := publish(t, b, "t", numbered(2, 1)...)
			if err := wantDelivered(t, b, "s", 10, second...); err != nil {
				return err
			}
			truncate(t, db, "leases", false, time.Minute)
			third := publish(t, b, "t", numbered(3, 1)...)
			if err := wantDelivered(t, b, "s", 10, third...); err != nil { // the cursor is in another slot from here on
				return err
			}
			truncate(t, db, "leases", false, time.Minute) // leases are where it was
			if n, err := b.Ack(t.Context(), "s", second); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			if err := wantAcked(t, b, 2); err != nil {
				return err
			}
			move(time.Hour)
			return wantDelivered(t, b, "s", 10, first[0], third[0])
		},
	},
	{
		name: "moving out of a slot",
		protections: []protection{
			{"vacate", "sub.acked + counted);", "sub.acked);"},
			{"vacate", "lease.remaining, 'leased', 1, lease.deadline,", "lease.remaining, 'leased', 2, lease.deadline,"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 4)...)
			msgs := consume(t, b, "s", 3)
			if n, err := b.Ack(t.Context(), "s", ids[:1]); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			for _, ring := range []string{"leases", "messages"} {
				truncate(t, db, ring, true, time.Minute)
			}
			if n := query[int64](t, db, `SELECT {schema}.slot_bytes('messages', 0::smallint) + {schema}.slot_bytes('leases', 0::smallint)`); n > 0 {
				return fmt.Errorf("%d bytes are left", n)
			}
			if err := wantAcked(t, b, 1); err != nil {
				return err
			}
			if n, err := b.Nack(t.Context(), "s", deliveriesOf(msgs[1:2]), fastpubsub.NackOptions{Delay: time.Second}); err != nil || n != 1 {
				return fmt.Errorf("nacked %d, %w", n, err)
			}
			if err := wantDelivered(t, b, "s", 10, ids[3]); err != nil {
				return err
			}
			move(time.Minute)
			return wantDelivered(t, b, "s", 10, ids[1:]...)
		},
	},
	{
		name:        "a snapshot that is older than what was moved",
		protections: []protection{{"truncate_slot", "AND l.virtualxid = ANY (state.waits_for)) THEN  -- protection: older snapshots", "AND false) THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 3)...)
			dump := begin(t, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
			if _, err := dump.Exec(t.Context(), `SELECT txid_current_snapshot()`); err != nil {
				return err
			}
			for _, ring := range []string{"leases", "messages"} {
				truncate(t, db, ring, true, 0)
			}
			var found int
			err := dump.QueryRow(t.Context(), db.SQL(`
				SELECT (SELECT count(*) FROM {schema}.deliveries) + (SELECT sum(n) FROM {schema}.messages) * (SELECT count(*) FROM {schema}.cursors)`)).Scan(&found)
			if err != nil || found != 3 {
				return fmt.Errorf("the snapshot has %d messages, want 3; %w", found, err)
			}
			return nil
		},
	},
	{
		name:        "a publisher that commits while a slot is looked through",
		protections: []protection{{"truncate_slot", "EXECUTE format('LOCK TABLE {schema}.%I IN SHARE MODE', 'messages_' || slot);  -- protection: writers", "NULL;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			drained := publish(t, b, "t", numbered(0, 1)...)
			if got := drain(t, b, "s", 10); !slices.Equal(got, drained) {
				return fmt.Errorf("got %v", got)
			}
			tx := begin(t, db, pgx.TxOptions{})
			ids := publishTx(t, b, tx, "t", numbered(1, 1)...)
			open := gate(t, db, "truncate_slot", "freed := {schema}.slot_bytes(ring, slot);")
			exec(t, db, `SELECT {schema}.rotate('messages', '0', 0)`)
			exec(t, db, `SELECT {schema}.truncate_slot('messages', 0::smallint, '0')`)
			var g errgroup.Group
			g.Go(func() error {
				_, err := db.Pool.Exec(t.Context(), db.SQL(`SELECT {schema}.truncate_slot('messages', 0::smallint, '0')`))
				return err
			})
			waitAtGate(t, db, "truncate_slot", &g)
			commit(t, tx)
			open()
			if err := g.Wait(); err != nil {
				return err
			}
			return wantDelivered(t, b, "s", 10, ids...)
		},
	},
	{
		name:        "a subscription that is being created while a slot is looked through",
		protections: []protection{{"truncate_slot", "LOCK TABLE {schema}.subscriptions IN SHARE MODE;  -- protection: new subscriptions", "NULL;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			publisher := begin(t, db, pgx.TxOptions{})
			ids := publishTx(t, b, publisher, "t", numbered(0, 1)...)
			creator := begin(t, db, pgx.TxOptions{})
			if _, err := creator.Exec(t.Context(), db.SQL(`SELECT {schema}.create_subscription('s', 't', NULL, NULL, 5, 1, 1, 60)`)); err != nil {
				return err
			}
			commit(t, publisher)
			exec(t, db, `SELECT {schema}.rotate('messages', '0', 0)`)
			for range 2 {
				exec(t, db, `SELECT {schema}.truncate_slot('messages', 0::smallint, '0')`)
			}
			commit(t, creator)
			return wantDelivered(t, b, "s", 10, ids...)
		},
	},
	{
		name:        "a message that comes to a slot after that was found unneeded",
		protections: []protection{{"truncate_slot", "IF {schema}.newer_messages(slot, state.seen) THEN  -- protection: nothing new", "IF false THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 1)...)
			drain(t, b, "s", 10)
			older := begin(t, db, pgx.TxOptions{})
			if _, err := older.Exec(t.Context(), `SELECT 1`); err != nil {
				return err
			}
			truncate(t, db, "messages", false, 0)
			// By a publisher that stood still between reading which slot is current and writing.
			exec(t, db, `
				INSERT INTO {schema}.messages (xid, base, created_at, topic_num, n, slot, payloads)
				SELECT pg_current_xact_id()::text::bigint, nextval('{schema}.message_base') << 16, now(), num, 1, 0, ARRAY['{}']
				FROM {schema}.topics`)
			reader := begin(t, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
			if _, err := reader.Exec(t.Context(), `SELECT txid_current_snapshot()`); err != nil {
				return err
			}
			if got := drain(t, b, "s", 10); len(got) != 1 {
				return fmt.Errorf("got %v", got)
			}
			commit(t, older)
			exec(t, db, `UPDATE {schema}.slots SET waits_for = '{}' WHERE unneeded_at IS NOT NULL`) // those of other tests
			exec(t, db, `SELECT {schema}.truncate_slot('messages', 0::smallint, '1 hour')`)
			var n int
			if err := reader.QueryRow(t.Context(), db.SQL(`SELECT count(*) FROM {schema}.messages`)).Scan(&n); err != nil || n != 2 {
				return fmt.Errorf("the snapshot has %d record batches, want 2; %w", n, err)
			}
			return nil
		},
	},
	{
		name:        "messages that are moved out of the log between a claim and the reading of it",
		protections: []protection{{"claimed", "IF n < wanted THEN  -- protection: moved meanwhile", "IF false THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			for sub, filter := range map[string]string{"all": noFilter, "some": `{"n":[0, 2]}`} {
				createSubscription(t, b, sub, "t", filter)
			}
			publish(t, b, "t", numbered(0, 3)...)
			publish(t, b, "t", numbered(3, 1)...)
			waitForOpen(t, db)
			for sub, want := range map[string]int{"all": 4, "some": 2} {
				if err := db.Pool.AcquireFunc(t.Context(), func(conn *pgxpool.Conn) error {
					if _, err := conn.Exec(t.Context(), db.SQL(`SELECT {schema}.claim($1, 'test', 10, NULL, false)`), sub); err != nil {
						return err
					}
					truncate(t, db, "messages", true, time.Minute)
					var got int
					err := conn.QueryRow(t.Context(), db.SQL(`SELECT sum(cardinality(payloads)) FROM {schema}.claimed()`)).Scan(&got)
					if err != nil || got != want {
						return fmt.Errorf("%s: %d messages were read, want %d; %w", sub, got, want, err)
					}
					return nil
				}); err != nil {
					return err
				}
			}
			return nil
		},
	},
	{
		name: "a claim that read which slot is current before that changed",
		protections: []protection{{"truncate_slot",
			"AND EXISTS (SELECT FROM pg_locks l WHERE l.virtualtransaction = ANY (state.waits_for)) THEN  -- protection: strays", "AND false THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			return strayClaim(t, b, db, func() { exec(t, db, `SELECT {schema}.rotate('leases', '0', 0)`) })
		},
	},
	{
		name:        "a claim that read which slot is current before a rotation that was rolled back in part",
		protections: []protection{{"truncate_slot", "IF state.until IS NULL THEN  -- protection: rotation cut off", "IF false THEN"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			return strayClaim(t, b, db, func() {
				tx := begin(t, db, pgx.TxOptions{})
				if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.rotate('leases', '0', 0)`)); err != nil {
					t.Fatal(err)
				}
				if err := tx.Rollback(t.Context()); err != nil { // the sequence stays where it is
					t.Fatal(err)
				}
			})
		},
	},
}

// strayClaim lets a claim write into a slot of leases that is left while it runs, and that is to be truncated.
func strayClaim(t testing.TB, b *fastpubsub.Broker, db *storetest.DB, rotate func()) error {
	t.Helper()
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	exec(t, db, `SELECT {schema}.rotate('leases', '0', 0)`)
	createSubscription(t, b, "other", "t", noFilter) // is in the next slot, then
	ids := publish(t, b, "t", numbered(0, 1)...)
	openClaim := gate(t, db, "claim", "now_at := {schema}.clock();")
	var consumed []fastpubsub.ID
	var g errgroup.Group
	g.Go(func() error {
		var err error
		consumed, err = consumeIDs(t, b, "s", 10)
		return err
	})
	waitAtGate(t, db, "claim", &g)
	rotate()
	exec(t, db, `SELECT {schema}.vacate('other', 1::smallint, NULL)`)
	openTruncate := gate(t, db, "truncate_slot", "freed := {schema}.slot_bytes(ring, slot);")
	exec(t, db, `SELECT {schema}.truncate_slot('leases', 1::smallint, '0')`)
	var truncating errgroup.Group
	truncating.Go(func() error {
		_, err := db.Pool.Exec(t.Context(), db.SQL(`SELECT {schema}.truncate_slot('leases', 1::smallint, '0')`))
		return err
	})
	waitAtGate(t, db, "truncate_slot", &truncating)
	openClaim()
	if err := g.Wait(); err != nil || !slices.Equal(consumed, ids) {
		return fmt.Errorf("consumed %v, %w", consumed, err)
	}
	openTruncate()
	if err := truncating.Wait(); err != nil {
		return err
	}
	if n, err := b.Ack(t.Context(), "s", ids); err != nil || n != 1 {
		return fmt.Errorf("acked %d, %w", n, err)
	}
	return nil
}

// truncate leaves the current slot of a ring and empties what can be emptied, after what is in it was moved out, if so. What
// transactions are in the way of is tried for a while.
func truncate(t testing.TB, db *storetest.DB, ring string, moveOut bool, wait time.Duration) {
	t.Helper()
	exec(t, db, `SELECT {schema}.rotate($1, '0', 0)`, ring)
	if moveOut {
		exec(t, db, `
			SELECT CASE $1 WHEN 'leases' THEN {schema}.vacate(s.id, slot::smallint, NULL) ELSE {schema}.vacate(s.id, NULL, slot::smallint) END
			FROM {schema}.subscriptions s, generate_series(0, 3) slot WHERE slot <> {schema}.current_slot($1)`, ring)
		if ring == "messages" {
			for _, id := range query[[]string](t, db, `SELECT array_agg(id) FROM {schema}.subscriptions`) {
				exec(t, db, `SELECT {schema}.spill($1)`, id)
			}
		}
	}
	// Transactions of other tests may have to be waited for, and would hide what goes wrong here.
	deadline := time.Now().Add(wait)
	for try := 0; ; try++ {
		left := query[int](t, db, `
			SELECT count(*) FILTER (WHERE ({schema}.truncate_slot($1, slot::smallint, '1 hour')).outcome IN ('waiting', 'locked', 'busy'))
			FROM generate_series(0, 3) slot`, ring)
		if left == 0 || try > 0 && time.Now().After(deadline) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func wantAcked(t testing.TB, b *fastpubsub.Broker, want int64) error {
	t.Helper()
	if m, err := b.Metrics(t.Context(), "s"); err != nil || m.Acked != want {
		return fmt.Errorf("%d messages were acked, want %d; %w", m.Acked, want, err)
	}
	return nil
}

// gate makes an engine function wait before a line of it, in each call, until open is called.
func gate(t testing.TB, db *storetest.DB, function, line string) (open func()) {
	t.Helper()
	name := "gate_" + function
	exec(t, db, `CREATE SEQUENCE {schema}.`+name)
	definition := query[string](t, db, `SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = $2 AND pronamespace = $1::regnamespace`, db.Schema, function)
	line = db.SQL(line)
	if strings.Count(definition, line) != 1 {
		t.Fatalf("%s has %q %d times", function, line, strings.Count(definition, line))
	}
	exec(t, db, strings.Replace(definition, line, db.SQL(`
		PERFORM set_config('application_name', '`+name+`', true);
		WHILE (SELECT NOT is_called FROM {schema}.`+name+`) LOOP PERFORM pg_sleep(0.001); END LOOP;
		PERFORM set_config('application_name', '', true); `)+line, 1))
	return func() { exec(t, db, `SELECT nextval('{schema}.`+name+`')`) }
}

// waitAtGate returns when a call waits at a gate, or g has come to its end without.
func waitAtGate(t testing.TB, db *storetest.DB, function string, g *errgroup.Group) {
	t.Helper()
	ended, cancel := context.WithCancel(t.Context())
	go func() { g.Wait(); cancel() }()
	for ended.Err() == nil && query[int](t, db, `
		SELECT count(*) FROM pg_stat_activity
		WHERE application_name = 'gate_' || $2 AND query LIKE '%"' || $1 || '"%'`, db.Schema, function) == 0 {
		time.Sleep(time.Millisecond)
	}
}
