package fastpubsub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A hazard is a way to lose a message, to deliver it twice, or to make others wait. Each check provokes one and says
// what went wrong. It must find nothing with the engine as it is, and something with each of the protections taken out:
// a protection is a line of an engine function, given here with what stands in its place.
type hazard struct {
	name        string
	protections []protection
	check       func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error
}

type protection struct{ function, line, without string }

func TestHazards(t *testing.T) {
	t.Parallel()
	for _, h := range hazards {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			t.Run("protected", func(t *testing.T) {
				t.Parallel()
				b, db := newBroker(t)
				if err := h.check(t, b, db); err != nil {
					t.Error(err)
				}
			})
			for _, p := range h.protections {
				t.Run("without "+p.function, func(t *testing.T) {
					t.Parallel()
					b, db := newBroker(t)
					db.SkipInvariants()
					takeOut(t, db, p)
					err := h.check(t, b, db)
					if err == nil {
						t.Fatalf("nothing goes wrong without %q", p.line)
					}
					t.Logf("as it should: %v", err)
				})
			}
		})
	}
}

// takeOut installs an engine function without one of its protections.
func takeOut(t testing.TB, db *storetest.DB, p protection) {
	t.Helper()
	functions := migrations.Functions(db.Schema)
	i := slices.IndexFunc(functions, func(f migrations.Function) bool { return f.Name == p.function })
	if i < 0 {
		t.Fatalf("no function %s", p.function)
	}
	line, without := db.SQL(p.line), db.SQL(p.without)
	if n := strings.Count(functions[i].SQL, line); n != 1 {
		t.Fatalf("%s has %q %d times", p.function, line, n)
	}
	exec(t, db, strings.Replace(functions[i].SQL, line, without, 1))
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

// wantDelivered drains a subscription and compares.
func wantDelivered(t testing.TB, b *fastpubsub.Broker, subscriptionID string, max int, want ...fastpubsub.ID) error {
	t.Helper()
	var got []fastpubsub.ID
	for range 1000 { // an engine without a protection may not come to an end
		ids, err := consumeIDs(t, b, subscriptionID, max)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			break
		}
		got = append(got, ids...)
	}
	byID := func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) }
	slices.SortFunc(got, byID)
	want = slices.SortedFunc(slices.Values(want), byID)
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("delivered (-want +got):\n%s", diff)
	}
	return nil
}

func consumeIDs(t testing.TB, b *fastpubsub.Broker, subscriptionID string, max int) ([]fastpubsub.ID, error) {
	t.Helper()
	msgs, err := b.Consume(t.Context(), subscriptionID, fastpubsub.ConsumeOptions{Consumer: "test", Max: max})
	return idsOf(msgs), err
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

// within fails what does not end in time, because it waits for somebody who does not go on.
func within(t testing.TB, what string, f func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

var hazards = []hazard{
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
		protections: []protection{{"create_subscription", "FROM pg_snapshot_xip(s) x", "FROM pg_snapshot_xip(s) x WHERE false"}},
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
		name: "a transaction that subscribes and publishes",
		protections: []protection{
			{"create_subscription", "UNION SELECT own_xid WHERE own_xid", "UNION SELECT own_xid WHERE false AND own_xid"}},
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
		name:        "a message acked by two transactions at once",
		protections: []protection{{"ack", "AND l.remaining = old;  -- protection: acked once", ";"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 4)...)
			ids := idsOf(consume(t, b, "s", 10))
			first := begin(t, db, pgx.TxOptions{})
			if n, err := b.AckTx(t.Context(), first, "s", ids[:3]); err != nil || n != 3 {
				return fmt.Errorf("first acked %d, %w", n, err)
			}
			var second int
			var g errgroup.Group
			g.Go(func() (err error) {
				second, err = b.Ack(t.Context(), "s", ids[1:])
				return err
			})
			waitForLockWaits(t, db, 1)
			commit(t, first)
			if err := g.Wait(); err != nil {
				return err
			}
			if second != 1 {
				return fmt.Errorf("the second acked %d, want 1", second)
			}
			return nil
		},
	},
	{
		name: "acks of the same leases in different orders",
		protections: []protection{
			{"ack", "keys := {schema}.find_leases(sub_num, current_slot, xids, los, his);", `
				SELECT array_agg(slot) AS slots, array_agg(kind) AS kinds, array_agg(first_xid) AS first_xids,
				       array_agg(first_seq) AS first_seqs, array_agg(remaining) AS remainings
				INTO keys
				FROM (SELECT u.* FROM {schema}.find_leases(sub_num, current_slot, xids, los, his) f,
				      unnest(f.slots, f.kinds, f.first_xids, f.first_seqs, f.remainings) u(slot, kind, first_xid, first_seq, remaining)
				      ORDER BY random()) r;`},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			// Leases of the main scan and of a late transaction, mixed.
			slow := begin(t, db, pgx.TxOptions{})
			publishTx(t, b, slow, "t", numbered(0, 60)...)
			publish(t, b, "t", numbered(60, 60)...)
			var ids []fastpubsub.ID
			for range 60 {
				ids = append(ids, idsOf(consume(t, b, "s", 1))...)
			}
			commit(t, slow)
			for range 60 {
				ids = append(ids, idsOf(consume(t, b, "s", 1))...)
			}
			// One lease in the middle is locked until all wait, each with the leases before it in hand.
			holder := begin(t, db, pgx.TxOptions{})
			_, err := holder.Exec(t.Context(), db.SQL(`SELECT FROM {schema}.leases ORDER BY kind, first_xid, first_seq OFFSET 60 LIMIT 1 FOR UPDATE`))
			if err != nil {
				return err
			}
			counts := make([]int, 8)
			g, ctx := errgroup.WithContext(t.Context())
			for i := range counts {
				mine := slices.Clone(ids)
				if i%2 == 1 {
					slices.Reverse(mine)
				}
				g.Go(func() (err error) {
					counts[i], err = b.Ack(ctx, "s", mine)
					return err
				})
			}
			waitForLockWaits(t, db, len(counts))
			commit(t, holder)
			if err := g.Wait(); err != nil {
				return err
			}
			total := 0
			for _, n := range counts {
				total += n
			}
			if total != 120 {
				return fmt.Errorf("acked %d messages of 120", total)
			}
			return nil
		},
	},
	{
		name:        "a payload that does not cast to jsonb, under a filter",
		protections: []protection{{"filter_ranges", "guarded := true;", "RAISE;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", `{"n":[0,1,2,3]}`)
			before := publish(t, b, "t", numbered(0, 2)...)
			// Publish refuses such a thing; this is the engine's second line.
			var xid, base int64
			err := db.Pool.QueryRow(t.Context(), db.SQL(`SELECT r[1], r[3] FROM {schema}.publish('t', $1, NULL) r`),
				[]string{`{"n":0}`, `{"n":"\u0000"}`, `no JSON`}).Scan(&xid, &base)
			if err != nil {
				return err
			}
			good := query[pgtype.UUID](t, db, `SELECT {schema}.message_id($1, $2)`, xid, base)
			after := publish(t, b, "t", numbered(2, 2)...)
			return wantDelivered(t, b, "s", 10, append(append(before, good.Bytes), after...)...)
		},
	},
	{
		name:        "a claim for nothing, beside a late transaction that has finished",
		protections: []protection{{"claim", "IF wanted > 0 AND cardinality(late_xids) > 0 THEN", "IF cardinality(late_xids) > 0 THEN"}},
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
		name: "a filter that matches nothing",
		protections: []protection{{"claim", "                new_xid := taken.end_xid;\n                new_seq := taken.end_seq;",
			"IF cardinality(taken.xids) > 0 THEN new_xid := taken.end_xid; new_seq := taken.end_seq; END IF;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", `{"n":["none"]}`)
			for range 3 {
				publish(t, b, "t", numbered(0, 4000)...)
			}
			if err := wantDelivered(t, b, "s", 10); err != nil {
				return err
			}
			behind := query[int](t, db, `SELECT count(*) FROM {schema}.messages
				WHERE (xid, base) > (SELECT xid, seq FROM {schema}.cursors ORDER BY gen DESC LIMIT 1)`)
			if behind > 0 {
				return fmt.Errorf("%d record batches will be looked at again", behind)
			}
			return nil
		},
	},
	{
		name:        "payloads so large that a filter takes long to look at them",
		protections: []protection{{"filter_ranges", "EXIT WHEN clock_timestamp() > until;", "NULL;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", `{"n":[1]}`)
			large := fastpubsub.NewMessage{Payload: fmt.Appendf(nil, `{"a":[%s0]}`, bytes.Repeat([]byte("1,"), 1<<19))}
			for range 40 {
				publish(t, b, "t", large)
			}
			wanted := publish(t, b, "t", numbered(1, 1)...)
			var outcome string
			conn, err := db.Pool.Acquire(t.Context())
			if err != nil {
				return err
			}
			defer conn.Release()
			err = conn.QueryRow(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'test', 10, NULL, false)`)).Scan(&outcome)
			if err != nil || outcome != "more" {
				return fmt.Errorf("a claim over 40 MiB returned %q, %w; want \"more\"", outcome, err)
			}
			msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Wait: 30 * time.Second})
			if err != nil || !slices.Equal(idsOf(msgs), wanted) {
				return fmt.Errorf("got %v, %w, want %v", idsOf(msgs), err, wanted)
			}
			return nil
		},
	},
	{
		name:        "a lock that is waited for longer than a deadline is long",
		protections: []protection{{"claim", "now_at := {schema}.clock();", "now_at := now();"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 1)...)
			tx := begin(t, db, pgx.TxOptions{})
			if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'other', 0, NULL, false)`)); err != nil {
				return err
			}
			var g errgroup.Group
			g.Go(func() error {
				_, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", AckDeadline: time.Second})
				return err
			})
			waitForLockWaits(t, db, 1)
			var released time.Time
			if err := tx.QueryRow(t.Context(), `SELECT clock_timestamp() FROM pg_sleep(0.3)`).Scan(&released); err != nil {
				return err
			}
			commit(t, tx)
			if err := g.Wait(); err != nil {
				return err
			}
			deadline := query[time.Time](t, db, `SELECT deadline FROM {schema}.leases`)
			if left := deadline.Sub(released); left < time.Second {
				return fmt.Errorf("%v are left of the second", left)
			}
			return nil
		},
	},
	{
		name:        "a subscription deleted while a consumer waits for it",
		protections: []protection{{"claim", "IF NOT FOUND THEN  -- deleted while we waited\n        RETURN 'no_subscription';", "IF NOT FOUND THEN RETURN 'ok';"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			tx := begin(t, db, pgx.TxOptions{})
			if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'other', 0, NULL, false)`)); err != nil {
				return err
			}
			var g errgroup.Group
			var got error
			g.Go(func() error {
				_, got = b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test"})
				return nil
			})
			waitForLockWaits(t, db, 1)
			if err := within(t, "delete", func(ctx context.Context) error { return b.DeleteSubscription(ctx, "s") }); err != nil {
				return err
			}
			commit(t, tx)
			g.Wait()
			if !errors.Is(got, fastpubsub.ErrNotFound) {
				return fmt.Errorf("consume returned %v, want %v", got, fastpubsub.ErrNotFound)
			}
			return nil
		},
	},
	{
		name: "a lease whose row somebody has locked when it runs out",
		protections: []protection{
			{"sweep_leases", "FOR UPDATE SKIP LOCKED  -- protection: wait for nobody", "FOR UPDATE"},
			{"sweep_leases", "(k.i = ANY (got.numbers)) IS NOT TRUE;  -- protection: held", "false;"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			clock := db.StopClock(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 3)...)
			held := idsOf(consume(t, b, "s", 1))
			consume(t, b, "s", 10)
			tx := begin(t, db, pgx.TxOptions{})
			if n, err := b.AckTx(t.Context(), tx, "s", held); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			if err := clock.Move(t.Context(), time.Hour); err != nil {
				return err
			}
			err := within(t, "consume", func(ctx context.Context) error {
				msgs, err := b.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "test"})
				if err == nil && !slices.Equal(idsOf(msgs), ids[1:]) {
					err = fmt.Errorf("got %v, want %v", idsOf(msgs), ids[1:])
				}
				return err
			})
			if err != nil {
				return err
			}
			if err := tx.Rollback(t.Context()); err != nil {
				return err
			}
			if err := clock.Move(t.Context(), time.Second); err != nil {
				return err
			}
			return wantDelivered(t, b, "s", 10, held...)
		},
	},
	{
		name:        "an ack that finds its lease swept",
		protections: []protection{{"ack", "IF acked = upper(wanted) - lower(wanted) OR", "IF true OR"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			clock := db.StopClock(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 3)...)
			ids := idsOf(consume(t, b, "s", 10))
			if err := clock.Move(t.Context(), time.Hour); err != nil {
				return err
			}
			tx := begin(t, db, pgx.TxOptions{})
			if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'other', 0, NULL, false)`)); err != nil {
				return err
			}
			var n int
			var g errgroup.Group
			g.Go(func() (err error) {
				n, err = b.Ack(t.Context(), "s", ids)
				return err
			})
			waitForLockWaits(t, db, 1)
			commit(t, tx)
			if err := g.Wait(); err != nil || n != 3 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			return wantDelivered(t, b, "s", 10)
		},
	},
	{
		name: "a consumer whose lease has run out gives back what others have",
		protections: []protection{
			{"move_leased", "AND l.remaining = old AND l.deadline > now_at  -- protection: not after the deadline", "AND l.remaining = old"},
			{"move_leased", "AND (coalesce(r.attempt, 0) = 0 OR d.attempts = r.attempt)  -- protection: the current attempt", ""},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			clock := db.StopClock(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 3)...)
			old := consume(t, b, "s", 10)
			if err := clock.Move(t.Context(), time.Hour); err != nil {
				return err
			}
			for range 2 { // before and after somebody else has them
				if n, err := b.Nack(t.Context(), "s", deliveriesOf(old), fastpubsub.NackOptions{}); err != nil || n != 0 {
					return fmt.Errorf("nacked %d, %w", n, err)
				}
				if n, err := b.Extend(t.Context(), "s", deliveriesOf(old), time.Minute); err != nil || n != 0 {
					return fmt.Errorf("extended %d, %w", n, err)
				}
				consume(t, b, "s", 10)
			}
			return nil
		},
	},
	{
		name:        "a nack of an id that was never given out",
		protections: []protection{{"move_leased", "AND m.xid = r.xid AND m.base >= r.lo & ~65535::bigint", "AND m.xid >= r.xid AND m.base >= r.lo & ~65535::bigint"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 2)...)
			publish(t, b, "t", numbered(2, 1)...)
			msgs := consume(t, b, "s", 10)
			made := msgs[2].Delivery
			copy(made.ID[:8], msgs[0].ID[:8]) // the transaction of another message, with the seq of this one
			if n, err := b.Nack(t.Context(), "s", []fastpubsub.Delivery{made}, fastpubsub.NackOptions{}); err != nil || n != 0 {
				return fmt.Errorf("nacked %d, %w", n, err)
			}
			if n, err := b.Ack(t.Context(), "s", idsOf(msgs)); err != nil || n != 3 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			return nil
		},
	},
	{
		name:        "a clock that steps back behind what was swept",
		protections: []protection{{"claim", "now_at := greatest(now_at, state.swept_to);", "NULL;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			clock := db.StopClock(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 2)...)
			first := idsOf(consume(t, b, "s", 10))
			if n, err := b.Ack(t.Context(), "s", first[1:]); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			first = first[:1]
			if err := clock.Move(t.Context(), 24*time.Hour); err != nil {
				return err
			}
			if err := wantDelivered(t, b, "s", 10, first...); err != nil {
				return err
			}
			if n, err := b.Ack(t.Context(), "s", first); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			if err := clock.Move(t.Context(), -24*time.Hour); err != nil {
				return err
			}
			second := publish(t, b, "t", numbered(2, 1)...)
			if err := wantDelivered(t, b, "s", 10, second...); err != nil {
				return err
			}
			if err := clock.Move(t.Context(), 48*time.Hour); err != nil {
				return err
			}
			if err := wantDelivered(t, b, "s", 10, second...); err != nil {
				return err
			}
			if m, err := b.Metrics(t.Context(), "s"); err != nil || m.Acked != 2 {
				return fmt.Errorf("%d messages were acked, want 2; %w", m.Acked, err)
			}
			return nil
		},
	},
	{
		name:        "a nack while the clock is behind what was handed out",
		protections: []protection{{"claim", "due_since := {schema}.due_from(state.due_to, now_at);", "due_since := {schema}.due_from(state.due_to, greatest(now_at, state.swept_to));"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			clock := db.StopClock(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 1)...)
			consume(t, b, "s", 10)
			if err := clock.Move(t.Context(), 24*time.Hour); err != nil {
				return err
			}
			again := consume(t, b, "s", 10)
			if err := clock.Move(t.Context(), -30*time.Minute); err != nil {
				return err
			}
			if n, err := b.Nack(t.Context(), "s", deliveriesOf(again), fastpubsub.NackOptions{Immediate: true}); err != nil || n != 1 {
				return fmt.Errorf("nacked %d, %w", n, err)
			}
			if got := idsOf(consume(t, b, "s", 10)); !slices.Equal(got, ids) {
				return fmt.Errorf("got %v, want %v", got, ids)
			}
			return nil
		},
	},
	{
		name:        "a thousand leases that run out at once",
		protections: []protection{{"sweep_leases", "WHERE l.messages - l.own < max_messages;", "WHERE true;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			clock := db.StopClock(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 900)...)
			for range 9 {
				consume(t, b, "s", 100)
				if err := clock.Move(t.Context(), time.Millisecond); err != nil {
					return err
				}
			}
			if err := clock.Move(t.Context(), time.Hour); err != nil {
				return err
			}
			exec(t, db, `SELECT {schema}.claim('s', 'other', 0, NULL, false)`)
			if n := query[int](t, db, `SELECT count(*) FROM {schema}.deliveries`); n != 100 {
				return fmt.Errorf("one call moved %d messages, want 100", n)
			}
			return wantDelivered(t, b, "s", 100, ids...)
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
}

func wantCode(err error, code string) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != code {
		return fmt.Errorf("got error %v, want one with code %s", err, code)
	}
	return nil
}

// waitForLockWaits returns once n statements of this schema wait for locks.
func waitForLockWaits(t testing.TB, db *storetest.DB, n int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for query[int](t, db, `SELECT count(*) FROM pg_stat_activity
	                       WHERE wait_event_type = 'Lock' AND query LIKE '%"' || $1 || '"%'`, db.Schema) < n {
		if time.Now().After(deadline) {
			t.Fatalf("there are not %d statements that wait for locks", n)
		}
	}
}
