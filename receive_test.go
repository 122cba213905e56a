package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// receivedUntil receives until enough returns true, and ends it.
func receivedUntil(t *testing.T, receive func(ctx context.Context) error, enough func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- receive(ctx) }()
	deadline := time.Now().Add(time.Minute)
	for !enough() {
		select {
		case err := <-done:
			t.Fatalf("it ended before its time: %v", err)
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Error("not enough within a minute")
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func metrics(t *testing.T, b *fastpubsub.Broker, sub string) fastpubsub.Metrics {
	t.Helper()
	m, err := b.Metrics(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	m.OldestUnackedAge = 0
	return m
}

// TestReceive handles what was published before and during it, in two receivers, each message once and not more than so many at a
// time.
func TestReceive(t *testing.T) {
	checkLeaks(t)
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	want := map[fastpubsub.ID]bool{}
	for _, id := range publish(t, b, "t", numbered(0, 3000)...) {
		want[id] = true
	}
	var mu sync.Mutex
	got := map[fastpubsub.ID]int{}
	var handled, running, most atomic.Int32
	handle := func(_ context.Context, msg fastpubsub.Message) error {
		now := running.Add(1)
		defer running.Add(-1)
		for {
			if m := most.Load(); now <= m || most.CompareAndSwap(m, now) {
				break
			}
		}
		runtime.Gosched()
		mu.Lock()
		got[msg.ID]++
		mu.Unlock()
		handled.Add(1)
		return nil
	}
	receivedUntil(t, func(ctx context.Context) error {
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() { errs[i] = b.Receive(ctx, "s", handle, fastpubsub.ReceiveOptions{Concurrency: 8}) })
		}
		for i := range 20 {
			ids, err := b.Publish(ctx, "t", numbered(3000+i, 1)...)
			if err != nil {
				return err
			}
			mu.Lock()
			want[ids[0]] = true
			mu.Unlock()
		}
		wg.Wait()
		return errors.Join(errs...)
	}, func() bool { return handled.Load() >= 3020 })
	if n := most.Load(); n > 16 {
		t.Errorf("%d handlers ran at once, want 16 at most", n)
	}
	for id := range want {
		if got[id] != 1 {
			t.Fatalf("message %v was handled %d times", id, got[id])
		}
	}
	if diff := cmp.Diff(fastpubsub.Metrics{Acked: 3020}, metrics(t, b, "s")); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// TestReceiveOutcomes has a message for each thing that a handler can say.
func TestReceiveOutcomes(t *testing.T) {
	checkLeaks(t)
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	sub := fastpubsub.Subscription{ID: "s", TopicID: "t"}
	sub.MaxDeliveryAttempts, sub.BackoffMin = 2, time.Second
	if _, err := b.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	type order struct{ N int }
	publish(t, b, "t", numbered(0, 7)...)
	publish(t, b, "t", fastpubsub.NewMessage{Payload: []byte(`{"n":"seven"}`)})
	var mu sync.Mutex
	attempts := map[int][]int{}
	var panics atomic.Int32
	handle := fastpubsub.Decode(func(_ context.Context, o order, msg fastpubsub.Message) error {
		mu.Lock()
		attempts[o.N] = append(attempts[o.N], msg.DeliveryAttempts)
		n := len(attempts[o.N])
		mu.Unlock()
		switch o.N {
		case 1:
			return errors.New("always")
		case 2:
			return fmt.Errorf("wrapped: %w", fastpubsub.Permanent(errors.New("for good")))
		case 3:
			if n < 4 {
				return fmt.Errorf("wrapped: %w", fastpubsub.Snooze(0))
			}
		case 4:
			panics.Add(1)
			panic("a mistake")
		case 5:
			runtime.Goexit()
		case 6:
			if n == 1 {
				return errors.New("once")
			}
		}
		return nil
	})
	receivedUntil(t, func(ctx context.Context) error {
		return b.Receive(ctx, "s", handle, fastpubsub.ReceiveOptions{Concurrency: 2})
	}, func() bool { m := metrics(t, b, "s"); return m.Acked+m.DeadLetters == 8 })

	if diff := cmp.Diff(map[int][]int{0: {1}, 1: {1, 2}, 2: {1}, 3: {1, 1, 1, 1}, 4: {1, 2}, 5: {1, 2}, 6: {1, 2}}, attempts); diff != "" {
		t.Errorf("attempts (-want +got):\n%s", diff)
	}
	letters, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wanted := map[string]string{
		`{"n":1}`: "always", `{"n":2}`: "wrapped: for good", `{"n":4}`: "receive_test.go", `{"n":5}`: "runtime.Goexit", `{"n":"seven"}`: "decode payload",
	}
	for _, letter := range letters {
		if text, ok := wanted[string(letter.Payload)]; !ok || !strings.Contains(letter.LastError, text) {
			t.Errorf("dead letter %s with %q", letter.Payload, letter.LastError)
		}
		delete(wanted, string(letter.Payload))
	}
	if len(wanted) > 0 {
		t.Errorf("no dead letters are %v", wanted)
	}
}

// TestReceiveExtends has a handler that works longer than the ack deadline.
func TestReceiveExtends(t *testing.T) {
	checkLeaks(t)
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	publish(t, b, "t", numbered(0, 1)...)
	var handled atomic.Int32
	receivedUntil(t, func(ctx context.Context) error {
		return b.Receive(ctx, "s", func(ctx context.Context, msg fastpubsub.Message) error {
			var extensions int
			for last := ""; extensions < 4; {
				var next *string
				if err := db.Pool.QueryRow(ctx, db.SQL(`SELECT max(next_at)::text FROM {schema}.deliveries WHERE state = 'leased'`)).Scan(&next); err != nil {
					return err
				}
				if next != nil && *next != last {
					last = *next
					extensions++
				}
				time.Sleep(time.Millisecond)
			}
			if msgs, err := b.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "other"}); err != nil || len(msgs) > 0 {
				return fmt.Errorf("another consumer gets %d messages, %w", len(msgs), err)
			}
			handled.Add(1)
			return nil
		}, fastpubsub.ReceiveOptions{AckDeadline: time.Second})
	}, func() bool { return metrics(t, b, "s").Acked == 1 })
	if handled.Load() != 1 {
		t.Errorf("handled %d times", handled.Load())
	}
}

// TestReceiveLost takes a message away from a handler, by a clock that jumps and by MaxHandling: its context says so.
func TestReceiveLost(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options fastpubsub.ReceiveOptions
		jump    bool
	}{
		// It holds no other message, so that it does not take this one again itself.
		{"taken by another", fastpubsub.ReceiveOptions{AckDeadline: 2 * time.Second, Concurrency: 1, MaxMessages: 1}, true},
		{"too long", fastpubsub.ReceiveOptions{AckDeadline: time.Second, MaxHandling: 1}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkLeaks(t)
			b, db := newBroker(t)
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 1)...)
			working := make(chan struct{})
			cause := make(chan error, 10)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			var first atomic.Bool
			go func() {
				done <- b.Receive(ctx, "s", func(ctx context.Context, msg fastpubsub.Message) error {
					if !first.CompareAndSwap(false, true) {
						return nil
					}
					close(working)
					<-ctx.Done()
					cause <- context.Cause(ctx)
					return ctx.Err()
				}, tt.options)
			}()
			<-working
			if tt.jump {
				move(time.Hour)
				if msgs := consume(t, b, "s", 1); len(msgs) != 1 || msgs[0].DeliveryAttempts != 2 {
					t.Errorf("another consumer gets %v", msgs)
				}
			}
			if err := <-cause; !errors.Is(err, fastpubsub.ErrLeaseLost) {
				t.Errorf("the cause is %v", err)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReceiveShutdown ends a receiver that has messages in all stages: acked, with a handler that ends in time, with one that does
// not, and waiting. Of what was not done, nothing counts as an attempt.
func TestReceiveShutdown(t *testing.T) {
	checkLeaks(t)
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	publish(t, b, "t", numbered(0, 2000)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var handled, blocked atomic.Int32
	var mu sync.Mutex
	done := map[fastpubsub.ID]bool{}
	err := b.Receive(ctx, "s", func(handlerCtx context.Context, msg fastpubsub.Message) error {
		if handled.Add(1) > 400 {
			if blocked.Add(1) == 4 {
				cancel()
			}
			if msg.ID[15]%2 == 0 {
				<-handlerCtx.Done()
				if cause := context.Cause(handlerCtx); !errors.Is(cause, fastpubsub.ErrStopping) {
					t.Errorf("the cause is %v", cause)
				}
				return fmt.Errorf("interrupted: %w", handlerCtx.Err())
			}
			<-ctx.Done()
			if handlerCtx.Err() != nil {
				t.Error("the handler is cancelled before its time")
			}
		}
		mu.Lock()
		done[msg.ID] = true
		mu.Unlock()
		return nil
	}, fastpubsub.ReceiveOptions{Concurrency: 4, ShutdownTimeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	m := metrics(t, b, "s")
	if int(m.Acked) != len(done) || m.Delivered != 0 || m.Delayed != 0 || int(m.Available) != 2000-len(done) {
		t.Errorf("metrics are %+v, want %d acked and the others available", m, len(done))
	}
	for {
		msgs := consume(t, b, "s", 1000)
		if len(msgs) == 0 {
			break
		}
		for _, msg := range msgs {
			if msg.DeliveryAttempts != 1 || done[msg.ID] {
				t.Fatalf("message %v comes for the %dth time, handled %v", msg.ID, msg.DeliveryAttempts, done[msg.ID])
			}
		}
	}
}

// TestReceiveRestart kills the server under receivers: all messages are handled all the same.
func TestReceiveRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("restarts a server")
	}
	checkLeaks(t)
	srv, db := storetest.NewServer(t, nil)
	b, pool := brokerOn(t, db.Schema, db.Pool.Config())
	createTopic(t, b, "t")
	sub := fastpubsub.Subscription{ID: "s", TopicID: "t"}
	sub.AckDeadline, sub.MaxDeliveryAttempts = 2*time.Second, 100
	if _, err := b.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	running(t, b)
	var mu sync.Mutex
	handled := map[fastpubsub.ID]bool{}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(handled)
	}
	receivedUntil(t, func(ctx context.Context) error {
		return b.Receive(ctx, "s", func(_ context.Context, msg fastpubsub.Message) error {
			mu.Lock()
			defer mu.Unlock()
			handled[msg.ID] = true
			return nil
		}, fastpubsub.ReceiveOptions{})
	}, func() bool {
		for round := range 3 {
			publish(t, b, "t", numbered(0, 500)...)
			for count() < 500*round+100 {
				time.Sleep(time.Millisecond)
			}
			if err := errors.Join(srv.Kill(), srv.Restart(t.Context())); err != nil {
				t.Fatal(err)
			}
			pool.Reset() // for the publisher, which does not try again
		}
		deadline := time.Now().Add(time.Minute)
		for count() < 1500 {
			if time.Now().After(deadline) {
				t.Errorf("%d messages were handled", count())
				break
			}
			time.Sleep(time.Millisecond)
		}
		return true
	})
	db.Pool.Reset()
	if m := metrics(t, b, "s"); m.DeadLetters != 0 || m.Acked+m.Available+m.Delivered != 1500 {
		t.Errorf("metrics are %+v", m)
	}
}

func TestReceiveErrors(t *testing.T) {
	checkLeaks(t)
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	nothing := func(context.Context, fastpubsub.Message) error { return nil }
	if err := b.Receive(t.Context(), "missing", nothing, fastpubsub.ReceiveOptions{}); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("a subscription that does not exist: %v", err)
	}
	err := b.Receive(t.Context(), "s", nil, fastpubsub.ReceiveOptions{
		Concurrency: -1, MaxMessages: -2, MaxBytes: -1, AckDeadline: time.Millisecond, ShutdownTimeout: -1, Consumer: strings.Repeat("x", 129)})
	var invalid *fastpubsub.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Problems) != 7 {
		t.Errorf("options: %v", err)
	}
	err = b.ReceiveTx(t.Context(), "s", nil, fastpubsub.ReceiveOptions{Concurrency: 20}) // the pool has 20 connections
	if !errors.As(err, &invalid) || len(invalid.Problems) != 2 {
		t.Errorf("options: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Receive(t.Context(), "s", nothing, fastpubsub.ReceiveOptions{}) }()
	for fastpubsub.Waiting(b, "s") == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := b.DeleteSubscription(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("a subscription that is deleted: %v", err)
	}
}
