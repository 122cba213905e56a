package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A hookRecorder writes down what hooks see.
type hookRecorder struct {
	mu     sync.Mutex // protects the rest
	open   map[*fastpubsub.Operation]bool
	ended  []fastpubsub.Operation
	broken []string
}

type hookKey struct{}

func (h *hookRecorder) Start(ctx context.Context, op *fastpubsub.Operation) context.Context {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = map[*fastpubsub.Operation]bool{}
	}
	h.open[op] = true
	if op.Count != 0 || op.Err != nil || op.Took != 0 || op.Began.IsZero() {
		h.broken = append(h.broken, fmt.Sprintf("%s has begun with %+v", op.Kind, op))
	}
	if op.Kind == fastpubsub.OpPublish {
		op.Attributes = map[string]string{"traceparent": "p"}
	}
	return context.WithValue(ctx, hookKey{}, op)
}

func (h *hookRecorder) End(ctx context.Context, op *fastpubsub.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.open[op] || ctx.Value(hookKey{}) != op || op.Took <= 0 {
		h.broken = append(h.broken, fmt.Sprintf("%s has not begun with the context that it ends with: %+v", op.Kind, op))
	}
	delete(h.open, op)
	h.ended = append(h.ended, *op)
}

// take returns what has ended since, one line each, but for claims that found nothing.
func (h *hookRecorder) take(t *testing.T) []string {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, text := range h.broken {
		t.Error(text)
	}
	if len(h.open) > 0 {
		t.Errorf("%d operations have not ended", len(h.open))
	}
	var lines []string
	for _, op := range h.ended {
		if op.Kind == fastpubsub.OpConsume && op.Count == 0 && op.Err == nil {
			continue
		}
		line := fmt.Sprintf("%s %s%s %d/%d", op.Kind, op.TopicID, op.SubscriptionID, op.Count, len(op.New)+len(op.Messages)+len(op.Deliveries))
		for _, flag := range []struct {
			set  bool
			text string
		}{
			{op.InTx, "tx"}, {op.Receiver, "receiver"}, {op.Outcome != "", string(op.Outcome)},
			{op.DeadLetters > 0, fmt.Sprintf("dead=%d", op.DeadLetters)}, {op.Kind == fastpubsub.OpPublish && len(op.IDs) != op.Count, "ids missing"},
		} {
			if flag.set {
				line += " " + flag.text
			}
		}
		if op.Err != nil {
			text, _, _ := strings.Cut(op.Err.Error(), "\n")
			line += ": " + text
		}
		lines = append(lines, line)
	}
	h.ended = nil
	return lines
}

func newHookedBroker(t testing.TB, hooks fastpubsub.Hooks) (*fastpubsub.Broker, *storetest.DB) {
	t.Helper()
	db := storetest.New(t, func(c *pgxpool.Config) { c.MaxConns = 20 })
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Hooks: hooks, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return b, db
}

// TestHooks has each operation once, and some that fail.
func TestHooks(t *testing.T) {
	t.Parallel()
	h := &hookRecorder{}
	b, db := newHookedBroker(t, h)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	sub := fastpubsub.Subscription{ID: "s", TopicID: "t"}
	sub.MaxDeliveryAttempts = 1
	if _, err := b.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	publish(t, b, "t", numbered(0, 2)...)
	if err := b.InTx(t.Context(), pgx.TxOptions{}, func(tx pgx.Tx) error {
		publishTx(t, b, tx, "t", numbered(2, 4)...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	tx := begin(t, db, pgx.TxOptions{})
	publishTx(t, b, tx, "t", numbered(6, 1)...)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _ = b.Publish(t.Context(), "missing", numbered(0, 1)...)
	_, _ = b.Publish(t.Context(), "t", fastpubsub.NewMessage{Payload: []byte("1")})

	waitForOpen(t, db)
	msgs := consume(t, b, "s", 10)
	if len(msgs) != 6 {
		t.Fatalf("took %d messages, want 6", len(msgs))
	}
	for _, m := range msgs {
		if diff := cmp.Diff(map[string]string{"traceparent": "p"}, m.Attributes); diff != "" {
			t.Fatalf("attributes (-want +got):\n%s", diff)
		}
	}
	_, _ = b.Consume(t.Context(), "missing", fastpubsub.ConsumeOptions{Consumer: "test"})
	tx = begin(t, db, pgx.TxOptions{})
	for _, do := range []func() (int, error){
		func() (int, error) { return b.Ack(t.Context(), "s", []fastpubsub.ID{msgs[0].ID, {}}) },
		func() (int, error) { return b.Ack(t.Context(), "missing", []fastpubsub.ID{msgs[0].ID}) },
		func() (int, error) {
			return b.Nack(t.Context(), "s", []fastpubsub.Delivery{msgs[1].Delivery}, fastpubsub.NackOptions{DeadLetter: true})
		},
		func() (int, error) { // it dies, too, but that is only in the database
			return b.Nack(t.Context(), "s", []fastpubsub.Delivery{msgs[2].Delivery}, fastpubsub.NackOptions{})
		},
		func() (int, error) {
			return b.Extend(t.Context(), "s", []fastpubsub.Delivery{msgs[3].Delivery}, time.Minute)
		},
		func() (int, error) { return b.Reprocess(t.Context(), "s", []fastpubsub.ID{msgs[1].ID}) },
		func() (int, error) { return b.Purge(t.Context(), "s", []fastpubsub.ID{msgs[2].ID}) },
		func() (int, error) { return b.AckTx(t.Context(), tx, "s", []fastpubsub.ID{msgs[4].ID}) },
		func() (int, error) {
			return b.NackTx(t.Context(), tx, "s", []fastpubsub.Delivery{msgs[3].Delivery}, fastpubsub.NackOptions{Uncounted: true})
		},
	} {
		_, _ = do() // the lines have what it returns
	}
	commit(t, tx)
	move(2 * time.Minute)
	if _, err := b.CleanupStuck(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"publish t 2/2",
		"publish t 4/4 tx",
		"publish t 1/1 tx",
		`publish missing 0/1: publish to "missing": not found`,
		`publish t 0/1: publish to "t": messages.0.payload: not an object at offset 0`,
		"consume s 6/6",
		`consume missing 0/0: not found`,
		"ack s 1/2",
		`ack missing 0/1: ack on "missing": not found`,
		"nack s 1/1 dead=1",
		"nack s 1/1",
		"extend s 1/1",
		"reprocess s 1/1",
		"purge s 1/1",
		"ack s 1/1 tx",
		"nack s 1/1 tx",
		"sweep s 1/0 dead=1",
	}
	if diff := cmp.Diff(want, h.take(t)); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}

// TestHooksReceive has each outcome of handlers, with the context of the hooks in them.
func TestHooksReceive(t *testing.T) {
	checkLeaks(t)
	for _, tx := range []bool{false, true} {
		t.Run(map[bool]string{false: "Receive", true: "ReceiveTx"}[tx], func(t *testing.T) {
			h := &hookRecorder{}
			b, _ := newHookedBroker(t, h)
			createTopic(t, b, "t")
			sub := fastpubsub.Subscription{ID: "s", TopicID: "t"}
			sub.MaxDeliveryAttempts, sub.BackoffMin = 2, time.Second
			if _, err := b.CreateSubscription(t.Context(), sub); err != nil {
				t.Fatal(err)
			}
			publish(t, b, "t", numbered(0, 5)...)
			handled := 0
			handle := fastpubsub.Decode(func(ctx context.Context, v struct{ N int }, msg fastpubsub.Message) error {
				handled++
				if op, _ := ctx.Value(hookKey{}).(*fastpubsub.Operation); op == nil || op.Kind != fastpubsub.OpHandle || op.Messages[0].ID != msg.ID {
					t.Errorf("the handler's context is of %+v", op)
				}
				switch v.N {
				case 1:
					return errors.New("always")
				case 2:
					return fastpubsub.Permanent(errors.New("for good"))
				case 3:
					return fastpubsub.Snooze(time.Hour)
				case 4:
					panic("at the disco")
				default:
					return nil
				}
			})
			receivedUntil(t, func(ctx context.Context) error {
				options := fastpubsub.ReceiveOptions{Concurrency: 1}
				if tx {
					return b.ReceiveTx(ctx, "s", func(ctx context.Context, _ pgx.Tx, msg fastpubsub.Message) error { return handle(ctx, msg) }, options)
				}
				return b.Receive(ctx, "s", handle, options)
			}, func() bool { return metrics(t, b, "s").DeadLetters == 3 })
			if handled != 7 { // 1 and 4 came twice
				t.Errorf("%d messages were handled, want 7", handled)
			}
			counts := map[string]int{}
			dead, nacked, acked, consumed := 0, 0, 0, 0
			h.mu.Lock()
			for _, op := range h.ended {
				if own := op.Kind != fastpubsub.OpPublish && op.Kind != fastpubsub.OpHandle && !op.InTx; op.Receiver != own {
					t.Errorf("%s says %v of whether it is the receiver's own", op.Kind, op.Receiver)
				}
				switch op.Kind {
				case fastpubsub.OpHandle:
					text := "none"
					if op.Err != nil {
						text, _, _ = strings.Cut(op.Err.Error(), "\n")
					}
					counts[fmt.Sprintf("%s %s %d: %s", op.TopicID, op.Outcome, op.Messages[0].DeliveryAttempts, text)]++
					if op.InTx != tx {
						t.Errorf("InTx is %v", op.InTx)
					}
				case fastpubsub.OpNack:
					nacked += op.Count
					dead += op.DeadLetters
				case fastpubsub.OpAck:
					acked += op.Count
				case fastpubsub.OpConsume:
					consumed += op.Count
				}
			}
			h.mu.Unlock()
			want := map[string]int{
				"t acked 1: none": 1, "t retry 1: always": 1, "t dead_letter 2: always": 1, "t dead_letter 1: for good": 1,
				"t snoozed 1: snoozed for 1h0m0s": 1, "t retry 1: panic: at the disco": 1, "t dead_letter 2: panic: at the disco": 1,
			}
			if diff := cmp.Diff(want, counts); diff != "" {
				t.Errorf("handled (-want +got):\n%s", diff)
			}
			wantAcked := map[bool]int{false: 1, true: 7}[tx] // a transaction begins with its ack, whatever becomes of it
			if dead != 3 || nacked != 6 || acked != wantAcked || consumed != 7 {
				t.Errorf("%d dead, %d nacked, %d acked, %d consumed, want 3, 6, %d, 7", dead, nacked, acked, consumed, wantAcked)
			}
			h.take(t)
		})
	}
}

// TestHooksGivenUp has handlers that lose their message, and are stopped.
func TestHooksGivenUp(t *testing.T) {
	checkLeaks(t)
	h := &hookRecorder{}
	b, _ := newHookedBroker(t, h)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	publish(t, b, "t", numbered(0, 1)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := b.Receive(ctx, "s", func(ctx context.Context, msg fastpubsub.Message) error {
		if msg.DeliveryAttempts > 1 {
			cancel()
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}, fastpubsub.ReceiveOptions{Concurrency: 1, AckDeadline: time.Second, MaxHandling: time.Millisecond, ShutdownTimeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range h.take(t) {
		if strings.HasPrefix(line, "handle") || strings.HasPrefix(line, "nack") {
			got = append(got, line)
		}
	}
	want := []string{
		"handle ts 1/1 lost: " + fastpubsub.ErrLeaseLost.Error(),
		"handle ts 1/1 returned: " + fastpubsub.ErrStopping.Error(),
		"nack s 1/1 receiver",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
	if m := metrics(t, b, "s"); m.Available != 1 || m.DeadLetters != 0 {
		t.Errorf("metrics are %+v, want the message available again", m)
	}
}

// BenchmarkHooks publishes a message, without hooks and with hooks that do nothing.
func BenchmarkHooks(b *testing.B) {
	for _, test := range []struct {
		name  string
		hooks fastpubsub.Hooks
	}{{"none", nil}, {"idle", idleHooks{}}} {
		b.Run(test.name, func(b *testing.B) {
			broker, _ := newHookedBroker(b, test.hooks)
			createTopic(b, broker, "t")
			b.ReportAllocs()
			for b.Loop() {
				publish(b, broker, "t", fastpubsub.NewMessage{Payload: []byte(`{"n":1}`)})
			}
		})
	}
}

type idleHooks struct{}

func (idleHooks) Start(ctx context.Context, _ *fastpubsub.Operation) context.Context { return ctx }
func (idleHooks) End(context.Context, *fastpubsub.Operation)                         {}
