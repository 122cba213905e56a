package fastpubsub_test

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// expiredByLook is what the function expired returns, but by a look at every subscription.
const expiredByLook = `
SELECT s.id
FROM {schema}.subscriptions s
CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
WHERE EXISTS (SELECT FROM {schema}.leases l WHERE l.sub = s.num AND l.deadline > '-infinity'
                AND l.deadline > c.swept_to AND l.deadline <= {schema}.clock())
   OR EXISTS (SELECT FROM {schema}.held_leases h WHERE h.sub = s.num)
   OR EXISTS (SELECT FROM {schema}.deliveries d WHERE d.sub = s.num AND d.state = 'acked')
   OR EXISTS (SELECT FROM {schema}.deliveries d WHERE d.sub = s.num AND d.next_at <= {schema}.clock() AND d.state = 'leased')
ORDER BY s.id`

func wantExpired(t testing.TB, db *storetest.DB, want ...string) {
	t.Helper()
	ids := func(sql string) []string {
		t.Helper()
		rows, _ := db.Pool.Query(t.Context(), db.SQL(sql)) // CollectRows reports Query's error
		all, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	got := ids(`SELECT sub_id FROM {schema}.expired() ORDER BY sub_id`)
	if !slices.Equal(got, want) {
		t.Errorf("%v have something to end, want %v", got, want)
	}
	if look := ids(expiredByLook); !slices.Equal(got, look) {
		t.Errorf("%v have something to end, by a look at each it is %v", got, look)
	}
}

// Maintenance finds the subscriptions that have something to end, and no others, wherever that is. A lease counts once its deadline
// has passed, and not any more when it was looked at.
func TestExpired(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	wantExpired(t, db)
	for _, id := range []string{"idle", "held", "lease", "old-slot", "later", "extended", "acked", "swept", "deleted", "retrying"} {
		createSubscription(t, b, id, "t", noFilter)
	}
	publish(t, b, "t", numbered(0, 4)...)
	taken := map[string][]fastpubsub.Message{"old-slot": consume(t, b, "old-slot", 2)}
	exec(t, db, `SELECT {schema}.rotate('leases', '0', 0)`)
	for _, id := range []string{"held", "lease", "extended", "acked", "swept", "deleted", "retrying"} {
		taken[id] = consume(t, b, id, 2)
	}
	if _, err := b.Consume(t.Context(), "later", fastpubsub.ConsumeOptions{Consumer: "test", Max: 2, AckDeadline: 10 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	extend := func(id string, d time.Duration) {
		t.Helper()
		if n, err := b.Extend(t.Context(), id, deliveriesOf(taken[id]), d); err != nil || n != 2 {
			t.Fatalf("extended %d of %s: %v", n, id, err)
		}
	}
	ack := func(id string) {
		t.Helper()
		if n, err := b.Ack(t.Context(), id, idsOf(taken[id])); err != nil || n != 2 {
			t.Fatalf("acked %d of %s: %v", n, id, err)
		}
	}
	extend("extended", 2*time.Hour)
	extend("acked", 10*time.Hour)
	wantExpired(t, db)
	ack("acked") // in deliveries, where it is to be counted
	if n, err := b.Nack(t.Context(), "retrying", deliveriesOf(taken["retrying"]), fastpubsub.NackOptions{Delay: time.Minute}); err != nil || n != 2 {
		t.Fatalf("nacked %d: %v", n, err)
	}
	wantExpired(t, db, "acked")

	move(90 * time.Minute)
	if err := b.DeleteSubscription(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	exec(t, db, `SELECT {schema}.claim('swept', 'other', 0, NULL, false)`)
	locked := begin(t, db, pgx.TxOptions{})
	if _, err := locked.Exec(t.Context(), db.SQL(`SELECT FROM {schema}.leases l JOIN {schema}.subscriptions s ON s.num = l.sub WHERE s.id = 'held' FOR UPDATE OF l`)); err != nil {
		t.Fatal(err)
	}
	exec(t, db, `SELECT {schema}.claim('held', 'other', 0, NULL, false)`)
	// What was extended or given back left its lease empty, and that is still to be looked at, once.
	wantExpired(t, db, "acked", "extended", "held", "lease", "old-slot", "retrying")
	commit(t, locked)
	wantStuck(t, b, fastpubsub.Stuck{Released: 6})
	wantExpired(t, db)

	move(time.Hour)
	wantExpired(t, db, "extended")
	wantStuck(t, b, fastpubsub.Stuck{Released: 2})
	move(10 * time.Hour)
	wantExpired(t, db, "later")
	wantStuck(t, b, fastpubsub.Stuck{Released: 2})
	wantExpired(t, db)
}

// A look for what has expired reads no more where there are thousands of subscriptions that nobody consumes from, and next to
// nothing of those whose leases have been looked at or have not run out.
func TestExpiredReadsLittle(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	createSubscription(t, b, "first", "t", noFilter)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	buffers := func() (n int) {
		t.Helper()
		for range 5 { // what is read the first time does not count
			n = buffersRead(t, db, conn, `SELECT * FROM {schema}.expired()`)
		}
		return n
	}
	before := buffers()
	exec(t, db, `SELECT {schema}.create_subscription('sub-' || i, 't', NULL, NULL, 5, 10, 600, 60) FROM generate_series(1, 3000) i`)
	if after := buffers(); after > before+20 {
		t.Errorf("%d buffers are read beside 3000 idle subscriptions, %d without", after, before)
	}

	publish(t, b, "t", numbered(0, 2000)...)
	for range 2 {
		if got, err := b.Consume(t.Context(), "first", fastpubsub.ConsumeOptions{Consumer: "test", Max: 1000, Single: true}); err != nil || len(got) != 1000 {
			t.Fatalf("%d messages: %v", len(got), err)
		}
	}
	one := buffers()
	if one > before+40 {
		t.Errorf("%d buffers are read beside 2000 leases that have not run out, %d without", one, before)
	}
	move(time.Hour)
	wantExpired(t, db, "first")
	for len(consume(t, b, "first", 1000)) > 0 || query[bool](t, db, `SELECT EXISTS (SELECT FROM {schema}.expired())`) {
		exec(t, db, `UPDATE {schema}.cursors SET due_to = '-infinity'`)
	}
	if after := buffers(); after > before+100 {
		t.Errorf("%d buffers are read beside 2000 leases that were looked at, %d without", after, before)
	}
}
