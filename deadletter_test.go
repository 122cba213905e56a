package fastpubsub_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
)

func deliveriesOf(msgs []fastpubsub.Message) []fastpubsub.Delivery {
	all := make([]fastpubsub.Delivery, len(msgs))
	for i, m := range msgs {
		all[i] = m.Delivery
	}
	return all
}

// settings of the subscriptions here: two deliveries, a backoff of 10 to 15 seconds, an ack deadline of a minute.
func createRetrying(t testing.TB, b *fastpubsub.Broker, id, topicID string, attempts int) {
	t.Helper()
	_, err := b.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: id, TopicID: topicID,
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: attempts, BackoffMin: 10 * time.Second,
			BackoffMax: 15 * time.Second, AckDeadline: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
}

func wantMetrics(t testing.TB, b *fastpubsub.Broker, subscriptionID string, want fastpubsub.Metrics) {
	t.Helper()
	got, err := b.Metrics(t.Context(), subscriptionID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics of %s (-want +got):\n%s", subscriptionID, diff)
	}
}

func wantStuck(t testing.TB, b *fastpubsub.Broker, want fastpubsub.Stuck) {
	t.Helper()
	got, err := b.CleanupStuck(t.Context())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, cleanup (-want +got):\n%s", err, diff)
	}
}

// A message that fails is delivered after a backoff that grows, with the same id, payload and attributes, until its attempts
// are used up; then it can be listed, and reprocessed.
func TestNack(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	createRetrying(t, b, "s", "t", 3)
	first := fastpubsub.NewMessage{Payload: []byte(`{"n" : 1.50}`), Attributes: map[string]string{"k": "v"}}
	ids := publish(t, b, "t", append([]fastpubsub.NewMessage{first}, numbered(1, 2)...)...)
	wantMetrics(t, b, "s", fastpubsub.Metrics{Available: 3})

	msgs := consume(t, b, "s", 10)
	move(time.Second)
	wantMetrics(t, b, "s", fastpubsub.Metrics{Delivered: 3, OldestUnackedAge: time.Second})
	for attempt, backoff := range []time.Duration{10 * time.Second, 15 * time.Second} {
		want := msgs[0]
		n, err := b.Nack(t.Context(), "s", deliveriesOf(msgs[:1]), fastpubsub.NackOptions{Error: "no luck"})
		if n != 1 || err != nil {
			t.Fatalf("nacked %d, %v", n, err)
		}
		if n, err := b.Nack(t.Context(), "s", deliveriesOf(msgs[:1]), fastpubsub.NackOptions{}); n != 0 || err != nil {
			t.Errorf("nacked %d again, %v", n, err)
		}
		if n, err := b.Ack(t.Context(), "s", ids[:1]); n != 0 || err != nil {
			t.Errorf("acked %d that wait, %v", n, err)
		}
		move(backoff - time.Microsecond)
		if msgs := consume(t, b, "s", 10); len(msgs) > 0 {
			t.Fatalf("%v after %v comes early", msgs, backoff)
		}
		move(time.Microsecond)
		if msgs = consume(t, b, "s", 10); len(msgs) != 1 {
			t.Fatalf("%d messages after attempt %d", len(msgs), attempt)
		}
		want.DeliveryAttempts = attempt + 2
		if diff := cmp.Diff(want, msgs[0]); diff != "" {
			t.Errorf("redelivered (-want +got):\n%s", diff)
		}
	}
	if n, err := b.Ack(t.Context(), "s", ids[1:2]); n != 1 || err != nil {
		t.Errorf("acked %d, %v", n, err)
	}
	wantMetrics(t, b, "s", fastpubsub.Metrics{Delivered: 2, Acked: 1, OldestUnackedAge: 26 * time.Second})
	if n, err := b.Nack(t.Context(), "s", deliveriesOf(msgs), fastpubsub.NackOptions{}); n != 1 || err != nil {
		t.Fatalf("nacked %d, %v", n, err)
	}
	wantMetrics(t, b, "s", fastpubsub.Metrics{Delivered: 1, Acked: 1, DeadLetters: 1, OldestUnackedAge: 26 * time.Second})
	letters, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{})
	if err != nil || len(letters) != 1 {
		t.Fatalf("%d dead letters, %v", len(letters), err)
	}
	want := fastpubsub.DeadLetter{Message: msgs[0], LastError: "no luck", DeadAt: letters[0].DeadAt}
	if diff := cmp.Diff(want, letters[0]); diff != "" {
		t.Errorf("dead letter (-want +got):\n%s", diff)
	}
	if n, err := b.Reprocess(t.Context(), "s", append(ids, ids...)); n != 1 || err != nil {
		t.Fatalf("reprocessed %d, %v", n, err)
	}
	got := consume(t, b, "s", 10)
	if len(got) != 1 || got[0].ID != ids[0] || got[0].DeliveryAttempts != 1 {
		t.Errorf("after reprocess %v comes", got)
	}
	if n, err := b.Ack(t.Context(), "s", ids); n != 2 || err != nil {
		t.Errorf("acked %d, %v", n, err)
	}
	wantMetrics(t, b, "s", fastpubsub.Metrics{Acked: 3})
	if _, err := b.CleanupStuck(t.Context()); err != nil {
		t.Error(err)
	}
	wantMetrics(t, b, "s", fastpubsub.Metrics{Acked: 3})
	if n := query[int](t, db, `SELECT count(*) FROM {schema}.deliveries`); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// A lease that runs out ends by itself, the last one in the dead letter queue.
func TestExpiry(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	createRetrying(t, b, "s", "t", 2)
	ids := publish(t, b, "t", numbered(0, 4)...)
	old := consume(t, b, "s", 10)
	move(time.Minute - time.Microsecond)
	if msgs := consume(t, b, "s", 10); len(msgs) > 0 {
		t.Fatalf("%v comes early", msgs)
	}
	move(time.Microsecond)
	if n, err := b.Nack(t.Context(), "s", deliveriesOf(old), fastpubsub.NackOptions{}); n != 0 || err != nil {
		t.Errorf("nacked %d after the deadline, %v", n, err)
	}
	if n, err := b.Extend(t.Context(), "s", deliveriesOf(old), time.Minute); n != 0 || err != nil {
		t.Errorf("extended %d after the deadline, %v", n, err)
	}
	if n, err := b.Ack(t.Context(), "s", ids[:1]); n != 1 || err != nil {
		t.Errorf("acked %d before the sweep, %v", n, err)
	}
	wantStuck(t, b, fastpubsub.Stuck{Released: 3})
	wantMetrics(t, b, "s", fastpubsub.Metrics{Available: 3, Acked: 1, OldestUnackedAge: time.Minute})
	if n, err := b.Ack(t.Context(), "s", ids[:2]); n != 1 || err != nil {
		t.Errorf("acked %d late, %v", n, err)
	}
	msgs := consume(t, b, "s", 10)
	if !slices.Equal(idsOf(msgs), ids[2:]) || msgs[0].DeliveryAttempts != 2 {
		t.Errorf("%v comes", msgs)
	}
	// He who had it first can do nothing to the second delivery, unless he goes by the id alone.
	if n, err := b.Nack(t.Context(), "s", deliveriesOf(old), fastpubsub.NackOptions{}); n != 0 || err != nil {
		t.Errorf("nacked %d of another's, %v", n, err)
	}
	move(time.Second)
	if n, err := b.Extend(t.Context(), "s", deliveriesOf(msgs[:1]), 2*time.Minute); n != 1 || err != nil {
		t.Errorf("extended %d, %v", n, err)
	}
	move(59 * time.Second)
	if msgs := consume(t, b, "s", 10); len(msgs) > 0 {
		t.Fatalf("%v comes a third time", msgs)
	}
	wantMetrics(t, b, "s", fastpubsub.Metrics{Delivered: 1, Acked: 2, DeadLetters: 1, OldestUnackedAge: 2 * time.Minute})
	letters, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{})
	if err != nil || len(letters) != 1 || letters[0].ID != ids[3] || letters[0].LastError != "ack deadline passed" || letters[0].DeliveryAttempts != 2 {
		t.Fatalf("dead letters %+v, %v", letters, err)
	}
	if n, err := b.Purge(t.Context(), "s", ids); n != 1 || err != nil {
		t.Fatalf("purged %d, %v", n, err)
	}
	move(time.Hour)
	wantStuck(t, b, fastpubsub.Stuck{DeadLetters: 1})
	wantMetrics(t, b, "s", fastpubsub.Metrics{Acked: 2, DeadLetters: 1})
}

// What is given back is delivered at once and as if never before.
func TestGiveBack(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createRetrying(t, b, "s", "t", 1)
	ids := publish(t, b, "t", numbered(0, 3)...)
	for range 3 {
		msgs := consume(t, b, "s", 10)
		if !slices.Equal(idsOf(msgs), ids) || msgs[0].DeliveryAttempts != 1 {
			t.Fatalf("%v comes", msgs)
		}
		if n, err := b.Extend(t.Context(), "s", deliveriesOf(msgs), 0); n != 3 || err != nil {
			t.Fatalf("gave back %d, %v", n, err)
		}
	}
}

// failurePath does everything that a message can go through, without waiting for time to pass.
func failurePath(t *testing.T, b *fastpubsub.Broker, pool *pgxpool.Pool) {
	t.Helper()
	createTopic(t, b, "failures")
	createRetrying(t, b, "failures", "failures", 3)
	msg := fastpubsub.NewMessage{Payload: []byte(`{"n" : 1e400}`), Attributes: map[string]string{"k": "v"}}
	ids := publish(t, b, "failures", append(numbered(0, 4), msg)...)
	msgs := consume(t, b, "failures", 10)
	if !slices.Equal(idsOf(msgs), ids) {
		t.Fatalf("%v comes, want %v", msgs, ids)
	}
	check := func(what string, want int) func(int, error) {
		return func(n int, err error) {
			t.Helper()
			if n != want || err != nil {
				t.Errorf("%s %d, want %d, %v", what, n, want, err)
			}
		}
	}
	ctx, ds := t.Context(), deliveriesOf(msgs)
	check("acked", 1)(b.Ack(ctx, "failures", ids[:1]))
	check("extended", 1)(b.Extend(ctx, "failures", ds[1:2], time.Minute))
	check("gave back", 1)(b.Extend(ctx, "failures", ds[2:3], 0))
	check("nacked", 1)(b.Nack(ctx, "failures", ds[3:4], fastpubsub.NackOptions{}))
	check("nacked with a delay", 1)(b.Nack(ctx, "failures", ds[1:2], fastpubsub.NackOptions{Delay: time.Hour, Error: "a\x00\xff" + strings.Repeat("é", 5000)}))
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		n, err := b.NackTx(ctx, tx, "failures", ds[4:], fastpubsub.NackOptions{Immediate: true, Error: "no luck"})
		check("nacked in a transaction", 1)(n, err)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	got := consume(t, b, "failures", 10)
	want := []fastpubsub.Message{msgs[2], msgs[4]}
	want[1].DeliveryAttempts = 2
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("redelivered (-want +got):\n%s", diff)
	}
	check("nacked a second time", 1)(b.Nack(ctx, "failures", deliveriesOf(got[1:]), fastpubsub.NackOptions{Immediate: true}))
	got = consume(t, b, "failures", 10)
	check("nacked a third time", 1)(b.Nack(ctx, "failures", deliveriesOf(got), fastpubsub.NackOptions{Immediate: true}))
	m, err := b.Metrics(ctx, "failures")
	if m.OldestUnackedAge <= 0 || m.OldestUnackedAge > time.Minute {
		t.Errorf("the oldest is %v old", m.OldestUnackedAge)
	}
	m.OldestUnackedAge = 0
	if want := (fastpubsub.Metrics{Available: 2, Delayed: 2, Delivered: 1, Acked: 1, DeadLetters: 1}); err != nil || m != want {
		t.Errorf("metrics are %+v, want %+v, %v", m, want, err)
	}
	letters, err := b.DeadLetters(ctx, "failures", fastpubsub.ListOptions{})
	if err != nil || len(letters) != 1 || letters[0].LastError != "no luck" {
		t.Fatalf("dead letters: %+v, %v", letters, err)
	}
	if diff := cmp.Diff(got[0], letters[0].Message); diff != "" {
		t.Errorf("dead letter (-want +got):\n%s", diff)
	}
	check("reprocessed", 1)(b.Reprocess(ctx, "failures", ids))
	for range 3 {
		got = consume(t, b, "failures", 10)
		check("nacked again", 1)(b.Nack(ctx, "failures", deliveriesOf(got), fastpubsub.NackOptions{Immediate: true}))
	}
	check("purged", 1)(b.Purge(ctx, "failures", ids))
	if stuck, err := b.CleanupStuck(ctx); err != nil || stuck != (fastpubsub.Stuck{}) {
		t.Errorf("cleanup did %+v, %v", stuck, err)
	}
}

func TestFailurePath(t *testing.T) {
	t.Parallel()
	for name, mode := range queryModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, db := newBroker(t, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			failurePath(t, b, db.Pool)
			var text string
			err := db.Pool.QueryRow(t.Context(), db.SQL(`SELECT last_error FROM {schema}.deliveries WHERE last_error <> 'no luck'`)).Scan(&text)
			if err != nil || len(text) > 8200 || !strings.HasPrefix(text, "a\uFFFD\uFFFDé") || !strings.HasSuffix(text, "é") {
				t.Errorf("the error was kept in %d bytes as %.20q, %v", len(text), text, err)
			}
		})
	}
}

func TestFailureLimits(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "exists", "t", noFilter)
	none := []fastpubsub.Delivery{}
	for reason, f := range map[string]func(string) (int, error){
		"nack":      func(id string) (int, error) { return b.Nack(t.Context(), id, none, fastpubsub.NackOptions{}) },
		"extend":    func(id string) (int, error) { return b.Extend(t.Context(), id, none, time.Minute) },
		"reprocess": func(id string) (int, error) { return b.Reprocess(t.Context(), id, nil) },
		"purge":     func(id string) (int, error) { return b.Purge(t.Context(), id, nil) },
	} {
		for _, id := range []string{"s", "no id!"} {
			if _, err := f(id); !errors.Is(err, fastpubsub.ErrNotFound) {
				t.Errorf("%s on %q: %v", reason, id, err)
			}
		}
		if n, err := f("exists"); n != 0 || err != nil {
			t.Errorf("%s of nothing: %d, %v", reason, n, err)
		}
	}
	// Deliveries that cannot exist.
	if n, err := b.Nack(t.Context(), "exists", []fastpubsub.Delivery{{}, {DeliveryAttempts: -1}, {ID: fastpubsub.ID{6: 0x80, 8: 0x80}, DeliveryAttempts: 1 << 40}}, fastpubsub.NackOptions{}); n != 0 || err != nil {
		t.Errorf("nacked %d, %v", n, err)
	}
	nack := func(o fastpubsub.NackOptions) error { _, err := b.Nack(t.Context(), "s", none, o); return err }
	extend := func(d time.Duration) error { _, err := b.Extend(t.Context(), "s", none, d); return err }
	_, many := b.Extend(t.Context(), "s", make([]fastpubsub.Delivery, 10_001), 0)
	for reason, err := range map[string]error{
		"negative delay":      nack(fastpubsub.NackOptions{Delay: -time.Second}),
		"fraction of a delay": nack(fastpubsub.NackOptions{Delay: time.Second / 2}),
		"long delay":          nack(fastpubsub.NackOptions{Delay: 367 * 24 * time.Hour}),
		"delay and none":      nack(fastpubsub.NackOptions{Delay: time.Second, Immediate: true}),
		"negative deadline":   extend(-time.Second),
		"long deadline":       extend(12*time.Hour + time.Second),
		"many":                many,
	} {
		if !errors.Is(err, fastpubsub.ErrInvalid) {
			t.Errorf("%s: %v", reason, err)
		}
	}
	if _, err := b.Metrics(t.Context(), "s"); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("metrics of nothing: %v", err)
	}
	if _, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{}); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("dead letters of nothing: %v", err)
	}
}

// A list of large dead letters ends early, and goes on from there.
func TestDeadLettersOfManyBytes(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	takeOut(t, db, protection{"dead_letters", "64 << 20", "250"})
	createTopic(t, b, "t")
	createRetrying(t, b, "s", "t", 1)
	publish(t, b, "t", fill(7, fastpubsub.NewMessage{Payload: []byte(`{"a":"` + strings.Repeat("x", 90) + `"}`)})...)
	publish(t, b, "t", fastpubsub.NewMessage{Payload: []byte(`{"a":"` + strings.Repeat("y", 1000) + `"}`), Attributes: map[string]string{"k": "v"}})
	ids := idsOf(consume(t, b, "s", 10))
	for len(ids) < 8 {
		ids = append(ids, idsOf(consume(t, b, "s", 10))...)
	}
	for _, id := range ids {
		delivery := fastpubsub.Delivery{ID: id}
		if n, err := b.Nack(t.Context(), "s", []fastpubsub.Delivery{delivery}, fastpubsub.NackOptions{}); n != 1 || err != nil {
			t.Fatalf("nacked %d, %v", n, err)
		}
	}
	var got []fastpubsub.ID
	for _, want := range []int{2, 2, 2, 1, 1, 0} {
		letters, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{Offset: len(got), Limit: 1000})
		if err != nil || len(letters) != want {
			t.Fatalf("%d dead letters behind %d, %v; want %d", len(letters), len(got), err, want)
		}
		for _, letter := range letters {
			got = append(got, letter.ID)
		}
	}
	if !slices.Equal(got, ids) {
		t.Errorf("got %v, want %v", got, ids)
	}
}

// A look for what is due that finds nothing is written down if it was slow, so that the next begins where it ended. One of a
// subscription that has nothing to look for writes nothing.
func TestSlowLook(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	move := stopClock(t, db)
	takeOut(t, db, protection{"claim", "slow         CONSTANT interval := '2 ms';", "slow         CONSTANT interval := '-1 s';"}) // each is
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	const state = `SELECT count(*) || ' ' || max(due_to) FROM {schema}.cursors`
	look := func() (before, after string) {
		t.Helper()
		move(time.Second)
		before = query[string](t, db, state)
		if msgs := consume(t, b, "s", 10); len(msgs) > 0 {
			t.Fatalf("%v comes", msgs)
		}
		return before, query[string](t, db, state)
	}
	for query[bool](t, db, `SELECT late_xids <> '{}' FROM {schema}.cursors ORDER BY gen DESC LIMIT 1`) {
		look() // other tests' transactions were in progress when the subscription was made
	}
	if before, after := look(); after != before {
		t.Errorf("with nothing to look for, cursors were %s and are %s", before, after)
	}
	publish(t, b, "t", numbered(0, 1)...)
	msgs := consume(t, b, "s", 10)
	if n, err := b.Nack(t.Context(), "s", deliveriesOf(msgs), fastpubsub.NackOptions{Delay: time.Hour}); n != 1 || err != nil {
		t.Fatalf("nacked %d, %v", n, err)
	}
	before, after := look()
	if now := query[string](t, db, `SELECT max(gen) || ' ' || {schema}.clock() FROM {schema}.cursors`); after != now || after == before {
		t.Errorf("after a slow look cursors are %s, want %s", after, now)
	}
	takeOut(t, db, protection{"claim", "slow         CONSTANT interval := '2 ms';", "slow         CONSTANT interval := '1 hour';"})
	if before, after := look(); after != before {
		t.Errorf("after a fast look cursors are %s, and were %s", after, before)
	}
}
