package fastpubsub_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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

// A message that fails is delivered after a backoff that grows, with the same id, payload and attributes, until its attempts
// are used up; then it can be listed, and reprocessed.
func TestNack(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	clock := db.StopClock(t)
	move := func(d time.Duration) {
		t.Helper()
		if err := clock.Move(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
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
	clock := db.StopClock(t)
	move := func(d time.Duration) {
		t.Helper()
		if err := clock.Move(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
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
	stuck, err := b.CleanupStuck(t.Context())
	if diff := cmp.Diff(fastpubsub.Stuck{Released: 3}, stuck); err != nil || diff != "" {
		t.Errorf("%v, cleanup (-want +got):\n%s", err, diff)
	}
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
	stuck, err = b.CleanupStuck(t.Context())
	if diff := cmp.Diff(fastpubsub.Stuck{DeadLetters: 1}, stuck); err != nil || diff != "" {
		t.Errorf("%v, cleanup (-want +got):\n%s", err, diff)
	}
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

func TestFailureLimits(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	if _, err := b.Metrics(t.Context(), "s"); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("metrics of nothing: %v", err)
	}
	if _, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{}); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("dead letters of nothing: %v", err)
	}
}
