package fastpubsub_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub"
)

// loopBroker has a topic "t" with n messages and a subscription "s".
func loopBroker(t *testing.T, n int) *fastpubsub.Broker {
	t.Helper()
	checkLeaks(t)
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	publish(t, b, "t", numbered(0, n)...)
	return b
}

// wantCounts compares the metrics of "s", but for the age.
func wantCounts(t *testing.T, b *fastpubsub.Broker, want fastpubsub.Metrics) {
	t.Helper()
	if diff := cmp.Diff(want, metrics(t, b, "s")); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// A loop acks what it goes on from, each message once, and ends with its context.
func TestMessages(t *testing.T) {
	b := loopBroker(t, 2500)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := map[fastpubsub.ID]bool{}
	for msg, err := range b.Messages(ctx, "s", fastpubsub.ReceiveOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if msg.Context().Err() != nil || got[msg.ID] || msg.DeliveryAttempts != 1 {
			t.Errorf("message %v, context %v, attempt %d, seen before: %t", msg.ID, msg.Context().Err(), msg.DeliveryAttempts, got[msg.ID])
		}
		if got[msg.ID] = true; len(got) == 2500 {
			cancel() // what the body has begun, it ends
		}
	}
	wantCounts(t, b, fastpubsub.Metrics{Acked: 2500})
}

// What Settle says is done, by the last call.
func TestMessagesSettle(t *testing.T) {
	b := loopBroker(t, 4)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for msg, err := range b.Messages(ctx, "s", fastpubsub.ReceiveOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		switch n++; n {
		case 1:
			msg.Settle(errors.New("no"))
			msg.Settle(nil)
		case 2:
			msg.Settle(fastpubsub.Permanent(errors.New("never")))
		case 3:
			msg.Settle(fastpubsub.Snooze(time.Hour))
		case 4:
			msg.Settle(errors.New("not now"))
			cancel()
		}
	}
	wantCounts(t, b, fastpubsub.Metrics{Acked: 1, DeadLetters: 1, Available: 2, Delayed: 2})
	dead, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{})
	if err != nil || len(dead) != 1 || dead[0].LastError != "never" {
		t.Errorf("dead letters %+v, %v", dead, err)
	}
}

// A loop that is left has acked what it went on from, the message at hand has failed unless it was settled, and the rest is given
// back without counting.
func TestMessagesLeft(t *testing.T) {
	for _, test := range []struct {
		name    string
		leave   func(msg *fastpubsub.Received)
		acked   int64
		delayed int64 // until the backoff is over
	}{
		{"by break", func(*fastpubsub.Received) {}, 2, 1},
		{"settled", func(msg *fastpubsub.Received) { msg.Settle(nil) }, 3, 0},
		{"by panic", func(*fastpubsub.Received) { panic("oh") }, 2, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := loopBroker(t, 500)
			n := 0
			func() {
				defer func() {
					if v := recover(); v != nil && v != "oh" {
						panic(v)
					}
				}()
				for msg, err := range b.Messages(t.Context(), "s", fastpubsub.ReceiveOptions{}) {
					if err != nil {
						t.Fatal(err)
					}
					if n++; n == 3 {
						test.leave(msg)
						break
					}
				}
			}()
			wantCounts(t, b, fastpubsub.Metrics{Acked: test.acked, Delayed: test.delayed, Available: 500 - test.acked})
			for _, msg := range consume(t, b, "s", 1000) {
				if msg.DeliveryAttempts != 1 {
					t.Errorf("attempt %d, though nobody has failed", msg.DeliveryAttempts)
				}
			}
		})
	}
}

// A loop that cannot be, or that can no longer be, ends with an error.
func TestMessagesErrors(t *testing.T) {
	b := loopBroker(t, 1)
	for msg, err := range b.Messages(t.Context(), "nobody", fastpubsub.ReceiveOptions{}) {
		if msg != nil || !errors.Is(err, fastpubsub.ErrNotFound) {
			t.Errorf("%v, %v", msg, err)
		}
	}
	for msg, err := range b.Messages(t.Context(), "s", fastpubsub.ReceiveOptions{Concurrency: 2}) {
		if msg != nil || !errors.Is(err, fastpubsub.ErrInvalid) {
			t.Errorf("%v, %v", msg, err)
		}
	}
	ended := false
	for _, err := range b.Messages(t.Context(), "s", fastpubsub.ReceiveOptions{}) {
		if err != nil {
			if ended = true; !errors.Is(err, fastpubsub.ErrNotFound) {
				t.Error(err)
			}
			continue // it is the last
		}
		if err := b.DeleteSubscription(t.Context(), "s"); err != nil {
			t.Fatal(err)
		}
	}
	if !ended {
		t.Error("no error after the subscription was deleted")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for msg, err := range b.Messages(cancelled, "s", fastpubsub.ReceiveOptions{}) {
		t.Errorf("%v, %v", msg, err)
	}
}
