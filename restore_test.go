package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	command "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestRestore dumps a schema in which messages are in every state there is, restores it elsewhere, and compares what is
// delivered there with what is delivered here.
func TestRestore(t *testing.T) {
	t.Parallel()
	srv, db := storetest.NewServer(t, nil)
	tool := postgresTools(t, srv)
	burnTransactions(t, db, 20_000)
	b := brokerOf(t, db)
	held, open := everyState(t, b, db)
	dump := dumpSchema(t, tool, db)
	if err := open.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := stateOf(t, b, held)

	behind, behindServer := newCluster(t)
	t.Run("a cluster whose transaction ids are behind", func(t *testing.T) {
		target := restoreDump(t, tool, dump, behind, behindServer, db.Schema)
		wantRestored(t, target, want, held)
	})
	t.Run("the same cluster", func(t *testing.T) {
		target := restoreDump(t, tool, dump, db, srv, db.Schema)
		wantRestored(t, target, want, held)
	})
	t.Run("a cluster whose transaction ids are ahead", func(t *testing.T) {
		burnTransactions(t, behind, 50_000)
		target := restoreDump(t, tool, dump, behind, behindServer, db.Schema)
		wantRestored(t, target, want, held)
	})
	t.Run("a dump of what was restored", func(t *testing.T) {
		first, firstServer := newCluster(t)
		copied := restoreDump(t, tool, dump, first, firstServer, db.Schema)
		if _, err := brokerOf(t, copied).Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
		second, secondServer := newCluster(t)
		again := restoreDump(t, tool, dumpSchema(t, tool, copied), second, secondServer, db.Schema)
		const oid = `SELECT '{schema}.messages'::regclass::oid::int`
		if a, b := query[int](t, copied, oid), query[int](t, again, oid); a != b {
			t.Logf("the oid alone would show it: %d, then %d", a, b)
		}
		wantRestored(t, again, want, held)
	})
	t.Run("unnoticed", func(t *testing.T) {
		other, otherServer := newCluster(t)
		target := restoreDump(t, tool, dump, other, otherServer, db.Schema)
		exec(t, target, `DROP TABLE {schema}.origin`)
		exec(t, target, `CREATE VIEW {schema}.origin AS SELECT true AS key, '{schema}.messages'::regclass::oid AS messages, '0'::xid AS xmin, '0'::xid AS written_by`)
		b := brokerOf(t, target)
		lost := publish(t, b, "t", numbered(1000, 3)...)
		if got := drain(t, b, "untouched", 100); slices.Contains(got, lost[0]) {
			t.Error("nothing is lost without the protection")
		} else {
			t.Logf("as it should: what was published after the restore is not among the %d messages that are delivered", len(got))
		}
	})
}

// TestLogicalMigration moves a schema by logical replication.
func TestLogicalMigration(t *testing.T) {
	t.Parallel()
	srv, db := storetest.NewServer(t, map[string]string{"wal_level": "logical"})
	tool := postgresTools(t, srv)
	burnTransactions(t, db, 20_000)
	b := brokerOf(t, db)
	exec(t, db, `CREATE PUBLICATION everything FOR ALL TABLES`)

	cluster, clusterServer := newCluster(t)
	target := restoreDump(t, tool, dumpSchema(t, tool, db, "--schema-only"), cluster, clusterServer, db.Schema)
	exec(t, target, fmt.Sprintf(`CREATE SUBSCRIPTION everything CONNECTION '%s' PUBLICATION everything`, db.URL))
	waitFor(t, target, "the first copy", `SELECT NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')`)

	held, _ := everyState(t, b, db)                                         // while it is replicated
	lsn := query[string](t, db, `SELECT pg_current_wal_insert_lsn()::text`) // claims do not wait for their commits
	waitFor(t, db, "the rest", `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE replay_lsn >= $1::text::pg_lsn)`, lsn)
	replica := brokerOf(t, target)
	if _, err := replica.Repair(t.Context()); !errors.Is(err, fastpubsub.ErrRestored) || !strings.Contains(err.Error(), "disable it first") {
		t.Errorf("repaired while replication writes: %v", err)
	}
	exec(t, target, `DROP SUBSCRIPTION everything`)
	wantRestored(t, target, stateOf(t, b, held), held)
}

// TestDumpUnderLoad takes a dump while messages are published and consumed and maintenance empties slots all the time:
// the copy delivers what was committed before and not acked.
func TestDumpUnderLoad(t *testing.T) {
	t.Parallel()
	srv, db := storetest.NewServer(t, map[string]string{"fsync": "off"})
	tool := postgresTools(t, srv)
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Maintenance: fastpubsub.MaintenanceSettings{SpillAfter: 1}})
	if err != nil {
		t.Fatal(err)
	}
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)

	// What happened when, by a counter that goes on: a call begins and ends; so does the dump.
	var clock atomic.Int64
	type span struct{ began, ended int64 }
	published, acked := make([]map[fastpubsub.ID]span, 3), make([]map[fastpubsub.ID]span, 3)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	g, loaded := errgroup.WithContext(ctx)
	for i := range published {
		published[i], acked[i] = map[fastpubsub.ID]span{}, map[fastpubsub.ID]span{}
		g.Go(func() error {
			for ctx.Err() == nil {
				began := clock.Add(1)
				ids, err := b.Publish(t.Context(), "t", numbered(0, 20)...)
				if err != nil {
					return err
				}
				s := span{began, clock.Add(1)}
				for _, id := range ids {
					published[i][id] = s
				}
			}
			return nil
		})
		g.Go(func() error {
			for ctx.Err() == nil {
				msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "c", Max: 20})
				if err != nil || len(msgs) == 0 {
					return err
				}
				began := clock.Add(1)
				if _, err := b.Ack(t.Context(), "s", idsOf(msgs)); err != nil {
					return err
				}
				s := span{began, clock.Add(1)}
				for _, m := range msgs {
					acked[i][m.ID] = s
				}
			}
			return nil
		})
	}
	var emptied atomic.Int64
	g.Go(func() error {
		for ctx.Err() == nil {
			freed, err := b.CleanupAcked(t.Context(), 0)
			if err != nil {
				return err
			}
			emptied.Add(int64(freed.Slots))
		}
		return nil
	})
	for emptied.Load() < 5 && loaded.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	begin := clock.Add(1)
	dump := dumpSchema(t, tool, db)
	end := clock.Add(1)
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}

	cluster, clusterServer := newCluster(t)
	target := restoreDump(t, tool, dump, cluster, clusterServer, db.Schema)
	copied := brokerOf(t, target)
	if _, err := copied.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	move := stopClock(t, target)
	move(time.Hour) // what consumers held is delivered again
	delivered := map[fastpubsub.ID]bool{}
	for _, id := range drain(t, copied, "s", 1000) {
		if delivered[id] {
			t.Errorf("delivered twice: %v", id)
		}
		delivered[id] = true
	}
	ackedAt := map[fastpubsub.ID]span{}
	for _, m := range acked {
		maps.Copy(ackedAt, m)
	}
	must := 0
	for _, m := range published {
		for id, p := range m {
			a, wasAcked := ackedAt[id]
			if p.ended < begin && (!wasAcked || a.began > end) {
				must++
				if !delivered[id] {
					t.Errorf("lost: %v, published at %d, acked at %d, the dump began at %d and ended at %d", id, p.ended, a.began, begin, end)
				}
			}
			if delivered[id] && (p.began > end || wasAcked && a.ended < begin) {
				t.Errorf("came again: %v, published at %d, acked at %d, the dump began at %d and ended at %d", id, p.began, a.ended, begin, end)
			}
		}
	}
	t.Logf("%d slots emptied before the dump; %d messages delivered after it, of which %d had to be", emptied.Load(), len(delivered), must)
}

// TestFunctionsRefuseCopies calls the engine itself: other clients are refused as well.
func TestFunctionsRefuseCopies(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	// What a restored dump looks like, in which the table has got its oid again.
	exec(t, db, `UPDATE {schema}.origin SET messages = messages`)
	db.Pool.Reset() // sessions ask once
	for _, statement := range []string{
		`SELECT {schema}.publish('t', '{"{}"}', NULL)`,
		`SELECT {schema}.publish_jsonb('t', '{"{}"}')`,
		`SELECT {schema}.claim('s', 'c', 1, NULL, false)`,
		`SELECT {schema}.spill('s')`,
		`SELECT {schema}.create_subscription('s2', 't', NULL, NULL, 5, 5, 5, 60)`,
		`SELECT {schema}.rotate('messages', '0', 1)`,
		`SELECT {schema}.truncate_slot('messages', 1::smallint, '0')`,
	} {
		_, err := db.Pool.Exec(t.Context(), db.SQL(statement))
		if err := wantCode(err, "PS001"); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if err := brokerOf(t, db).Check(t.Context()); !errors.Is(err, fastpubsub.ErrRestored) {
		t.Errorf("checked: %v", err)
	}
	// The server has a broker that found the schema good before, too.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		defer cancel()
		for b.Check(ctx) != nil && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}()
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Errorf("after Run: %v", err)
	}
	publish(t, b, "t", numbered(0, 1)...)
	if got := drain(t, b, "s", 10); len(got) != 1 {
		t.Errorf("%d messages delivered", len(got))
	}
}

// TestRepairDeadlock has somebody lock tables that repair locks, too, in another order: repair leaves that for later.
func TestRepairDeadlock(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, nil) // with a superuser
	b := brokerOf(t, db)
	exec(t, db, `UPDATE {schema}.origin SET messages = messages`)
	db.Pool.Reset() // sessions ask once
	other := begin(t, db, pgx.TxOptions{})
	if _, err := other.Exec(t.Context(), db.SQL(`SET LOCAL deadlock_timeout = '1min'; LOCK TABLE {schema}.leases IN ROW EXCLUSIVE MODE`)); err != nil {
		t.Fatal(err)
	}
	outcome := make(chan error, 1)
	go func() {
		_, err := b.Repair(t.Context())
		outcome <- err
	}()
	waitForLockWaits(t, db, 1)
	if _, err := other.Exec(t.Context(), db.SQL(`LOCK TABLE {schema}.subscriptions IN ACCESS SHARE MODE`)); err != nil {
		t.Fatal(err)
	}
	if err := <-outcome; !errors.Is(err, fastpubsub.ErrBusy) {
		t.Errorf("repair against a lock returned %v, want %v", err, fastpubsub.ErrBusy)
	}
	commit(t, other)
	if repaired, err := b.Repair(t.Context()); err != nil || !repaired.Restored {
		t.Errorf("repair after that: %+v, %v", repaired, err)
	}
}

// TestOriginSurvives does to the tables what keeps transaction ids as they are.
func TestOriginSurvives(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, nil)
	b := brokerOf(t, db)
	for _, statement := range []string{
		`VACUUM (FREEZE) {schema}.origin`, `VACUUM (FULL, FREEZE) {schema}.origin`, `CLUSTER {schema}.origin USING origin_pkey`,
		`REINDEX TABLE {schema}.origin`, `ANALYZE {schema}.origin`, `VACUUM (FULL) {schema}.messages`,
	} {
		exec(t, db, statement)
		if err := b.Check(t.Context()); err != nil {
			t.Errorf("after %s: %v", statement, err)
		}
	}
	exec(t, db, `CREATE DATABASE copy`)
	repaired, err := b.Repair(t.Context())
	if err != nil || repaired.Restored {
		t.Errorf("repaired: %+v, %v", repaired, err)
	}
}

// everyState fills a schema and returns the messages that consumers hold, and a transaction that is still open.
func everyState(t *testing.T, b *fastpubsub.Broker, db *storetest.DB) (held map[string][]fastpubsub.ID, open pgx.Tx) {
	t.Helper()
	createTopic(t, b, "t")
	createSubscription(t, b, "all", "t", noFilter)
	createSubscription(t, b, "filtered", "t", `{"n": [3, 7, 100, 102, 1002]}`)
	createSubscription(t, b, "untouched", "t", noFilter)
	if _, err := b.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: "once", TopicID: "t",
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 1}}); err != nil {
		t.Fatal(err)
	}
	held = map[string][]fastpubsub.ID{}
	nack := func(sub string, m fastpubsub.Message, options fastpubsub.NackOptions) {
		t.Helper()
		if _, err := b.Nack(t.Context(), sub, []fastpubsub.Delivery{m.Delivery}, options); err != nil {
			t.Fatal(err)
		}
	}
	ack := func(sub string, ids ...fastpubsub.ID) {
		t.Helper()
		if n, err := b.Ack(t.Context(), sub, ids); err != nil || n != len(ids) {
			t.Fatalf("acked %d of %d: %v", n, len(ids), err)
		}
	}
	publish(t, b, "t", numbered(0, 10)...)
	waitForOpen(t, db)
	msgs := consume(t, b, "all", 6)
	ack("all", msgs[0].ID, msgs[1].ID)
	nack("all", msgs[2], fastpubsub.NackOptions{Delay: time.Hour, Error: "broken"})
	nack("all", msgs[3], fastpubsub.NackOptions{Immediate: true})
	held["all"] = []fastpubsub.ID{msgs[4].ID, msgs[5].ID}
	msgs = consume(t, b, "once", 3)
	nack("once", msgs[0], fastpubsub.NackOptions{Error: "broken"})
	ack("once", msgs[1].ID)
	held["once"] = []fastpubsub.ID{msgs[2].ID}

	// Transactions that consumers have passed: one that commits, one that does not.
	late, never := begin(t, db, pgx.TxOptions{}), begin(t, db, pgx.TxOptions{})
	publishTx(t, b, late, "t", numbered(100, 4)...)
	publishTx(t, b, never, "t", numbered(200, 4)...)
	publish(t, b, "t", numbered(300, 5)...)
	for _, sub := range []string{"all", "filtered"} {
		for msgs := consume(t, b, sub, 3); len(msgs) > 0; msgs = consume(t, b, sub, 3) {
			ack(sub, msgs[0].ID)
			held[sub] = append(held[sub], idsOf(msgs[1:])...)
		}
	}
	commit(t, late)
	publish(t, b, "t", numbered(400, 700)...) // more than one record batch
	for range 2 {                             // the ring has more than one slot of leases in use
		if got := query[string](t, db, `SELECT {schema}.rotate('leases', '0', 1)`); got != "rotated" {
			t.Fatalf("rotate: %s", got)
		}
		msgs = consume(t, b, "filtered", 1)
		held["filtered"] = append(held["filtered"], idsOf(msgs)...)
	}
	return held, never
}

// A subState is all that can be seen of a subscription.
type subState struct {
	Metrics     fastpubsub.Metrics
	Delivered   map[fastpubsub.ID]string // payload and attempts
	DeadLetters []fastpubsub.DeadLetter
	AckedLate   int // of what was held
}

// stateOf looks at all subscriptions, and consumes, publishes and acks while it does.
func stateOf(t *testing.T, b *fastpubsub.Broker, held map[string][]fastpubsub.ID) map[string]subState {
	t.Helper()
	states := map[string]subState{}
	subs, err := b.ListSubscriptions(t.Context(), fastpubsub.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range subs {
		s := subState{Delivered: map[fastpubsub.ID]string{}}
		if s.Metrics, err = b.Metrics(t.Context(), sub.ID); err != nil {
			t.Fatal(err)
		}
		s.Metrics.OldestUnackedAge = 0
		if s.DeadLetters, err = b.DeadLetters(t.Context(), sub.ID, fastpubsub.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		states[sub.ID] = s
	}
	for _, sub := range subs {
		s := states[sub.ID]
		for msgs := consume(t, b, sub.ID, 100); len(msgs) > 0; msgs = consume(t, b, sub.ID, 100) {
			for _, m := range msgs {
				if s.Delivered[m.ID] != "" {
					t.Errorf("%s: delivered twice: %v", sub.ID, m.ID)
				}
				s.Delivered[m.ID] = fmt.Sprintf("%s, attempt %d", m.Payload, m.DeliveryAttempts)
			}
		}
		if s.AckedLate, err = b.Ack(t.Context(), sub.ID, held[sub.ID]); err != nil {
			t.Fatal(err)
		}
		if s.AckedLate != len(held[sub.ID]) {
			t.Errorf("%s: acked %d of %d that were held", sub.ID, s.AckedLate, len(held[sub.ID]))
		}
		states[sub.ID] = s
	}
	return states
}

// wantRestored repairs a copy and compares it with the original. Then all goes on there.
func wantRestored(t *testing.T, target *storetest.DB, want map[string]subState, held map[string][]fastpubsub.ID) {
	t.Helper()
	b := brokerOf(t, target)
	_, err := b.Publish(t.Context(), "t", numbered(0, 1)...)
	if !errors.Is(err, fastpubsub.ErrRestored) {
		t.Errorf("published before the repair: %v", err)
	}
	if _, err := b.Consume(t.Context(), "all", fastpubsub.ConsumeOptions{Consumer: "c"}); !errors.Is(err, fastpubsub.ErrRestored) {
		t.Errorf("consumed before the repair: %v", err)
	}
	var restored atomic.Int32
	var g errgroup.Group
	for range 3 {
		g.Go(func() error {
			repaired, err := brokerOf(t, target).Repair(t.Context())
			if repaired.Restored {
				restored.Add(1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := restored.Load(); n != 1 {
		t.Errorf("repaired %d times", n)
	}
	waitForOpen(t, target)
	if diff := cmp.Diff(want, stateOf(t, b, held)); diff != "" {
		t.Errorf("restored (-want +got):\n%s", diff)
	}

	// It goes on, with a transaction that was open meanwhile, too.
	tx := begin(t, target, pgx.TxOptions{})
	late := publishTx(t, b, tx, "t", numbered(1000, 3)...)
	createTopic(t, b, "new")
	createSubscription(t, b, "new", "new", noFilter)
	news := publish(t, b, "new", numbered(0, 3)...)
	later := publish(t, b, "t", numbered(2000, 3)...)
	if err := wantDelivered(t, b, "untouched", 10, later...); err != nil {
		t.Error(err)
	}
	commit(t, tx)
	if err := wantDelivered(t, b, "untouched", 10, late...); err != nil {
		t.Error(err)
	}
	if err := wantDelivered(t, b, "new", 10, news...); err != nil {
		t.Error(err)
	}
	for _, s := range want {
		for id := range s.Delivered {
			if slices.Contains(slices.Concat(late, news, later), id) {
				t.Errorf("an id was given a second time: %v", id)
			}
		}
	}
	if err := target.CheckInvariants(t.Context()); err != nil {
		t.Error(err)
	}
}

// brokerOf returns a broker that has not looked at the schema yet, whose subscriptions have a long ack deadline.
func brokerOf(t testing.TB, db *storetest.DB) *fastpubsub.Broker {
	t.Helper()
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{
		Schema: db.Schema, SubscriptionDefaults: fastpubsub.SubscriptionSettings{AckDeadline: 12 * time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newCluster returns a server with a schema of its own that nobody uses.
func newCluster(t *testing.T) (*storetest.DB, *pgserver.Server) {
	t.Helper()
	srv, db := storetest.NewServer(t, nil)
	return db, srv
}

// burnTransactions uses up transaction ids.
func burnTransactions(t *testing.T, db *storetest.DB, n int) {
	t.Helper()
	exec(t, db, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`, n))
}

// postgresTools returns what runs a client program of the server's version.
func postgresTools(t *testing.T, srv *pgserver.Server) func(name string, args ...string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(srv.Bin(), "pg_dump")); err != nil {
		t.Skipf("NOT TESTED: %s needs pg_dump and pg_restore beside the server: %v", t.Name(), err)
	}
	return func(name string, args ...string) {
		t.Helper()
		out, err := command.CommandContext(t.Context(), filepath.Join(srv.Bin(), name), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
}

// dumpSchema returns the file of a dump.
func dumpSchema(t *testing.T, tool func(string, ...string), db *storetest.DB, options ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dump")
	tool("pg_dump", append(options, "--format=custom", "--schema="+db.Schema, "--file="+file, "--dbname="+db.URL)...)
	return file
}

var databases atomic.Int32

// restoreDump restores a dump into a new database of a cluster.
func restoreDump(t *testing.T, tool func(string, ...string), dump string, cluster *storetest.DB, srv *pgserver.Server, schema string) *storetest.DB {
	t.Helper()
	name := fmt.Sprintf("restored_%d", databases.Add(1))
	exec(t, cluster, `CREATE DATABASE `+name)
	url := strings.Replace(srv.URL(), "/fastpubsub?", "/"+name+"?", 1)
	tool("pg_restore", "--exit-on-error", "--dbname="+url, dump)
	return connectURL(t, url, schema)
}

// waitFor returns once a query says true.
func waitFor(t *testing.T, db *storetest.DB, what, sql string, args ...any) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !query[bool](t, db, sql, args...) {
		if time.Now().After(deadline) {
			t.Fatalf("%s takes longer than a minute", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
