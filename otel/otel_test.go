package otelfastpubsub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/fastpubsub/fastpubsub"
	otelfastpubsub "github.com/fastpubsub/fastpubsub/otel"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// A telemetry is what one process would send: spans and metrics.
type telemetry struct {
	*fastpubsub.Broker
	hooks  *otelfastpubsub.Hooks
	spans  *tracetest.SpanRecorder
	tracer trace.Tracer
	reader *sdkmetric.ManualReader
}

// newTelemetry returns a broker with hooks of its own, as another process has.
func newTelemetry(t *testing.T, db *storetest.DB, configure ...func(*otelfastpubsub.Config)) *telemetry {
	t.Helper()
	s := &telemetry{spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader()}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s.spans))
	s.tracer = tracers.Tracer("test")
	config := otelfastpubsub.Config{TracerProvider: tracers, MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.reader)),
		Attributes: []attribute.KeyValue{attribute.String("server.address", "db.example.com")}}
	for _, f := range configure {
		f(&config)
	}
	var err error
	if s.hooks, err = otelfastpubsub.New(config); err != nil {
		t.Fatal(err)
	}
	s.Broker, err = fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Hooks: s.hooks, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// span is the only span of a name.
func (s *telemetry) span(t *testing.T, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	var found []sdktrace.ReadOnlySpan
	var names []string
	for _, span := range s.spans.Ended() {
		names = append(names, span.Name())
		if span.Name() == name {
			found = append(found, span)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %q among %q, want 1", len(found), name, names)
	}
	return found[0]
}

func attributesOf(all []attribute.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range all {
		m[string(kv.Key)] = kv.Value.String()
	}
	return m
}

func newDB(t *testing.T) *storetest.DB {
	t.Helper()
	return storetest.New(t, func(c *pgxpool.Config) { c.MaxConns = 10 })
}

func create(t *testing.T, b *fastpubsub.Broker, attempts int) {
	t.Helper()
	if _, err := b.CreateTopic(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	sub := fastpubsub.Subscription{ID: "emails", TopicID: "orders"}
	sub.MaxDeliveryAttempts = attempts
	if _, err := b.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
}

// received receives until n messages were handled, and everything is acked.
func received(t *testing.T, n int32, receive func(ctx context.Context, handled func()) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var count atomic.Int32
	if err := receive(ctx, func() {
		if count.Add(1) == n {
			cancel()
		}
	}); err != nil {
		t.Fatal(err)
	}
	if count.Load() < n {
		t.Fatalf("%d messages were handled within a minute, want %d", count.Load(), n)
	}
}

const hidden = "4111-1111" // in payloads; nobody is to see it

// checkHidden fails if payloads are anywhere in the spans.
func (s *telemetry) checkHidden(t *testing.T) {
	t.Helper()
	for _, span := range s.spans.Ended() {
		if text := fmt.Sprintf("%+v", tracetest.SpanStubFromReadOnlySpan(span)); strings.Contains(text, hidden) {
			t.Errorf("a span has a payload: %s", text)
		}
	}
}

// checkLeaks fails the test if goroutines of the library go on after it.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		deadline := time.Now().Add(time.Minute)
		for {
			buf := make([]byte, 4<<20)
			var leaked []byte
			for stack := range bytes.SplitSeq(buf[:runtime.Stack(buf, true)], []byte("\n\n")) {
				if bytes.Contains(stack, []byte("fastpubsub/fastpubsub.")) && !bytes.Contains(stack, []byte("testing.tRunner(")) {
					leaked = stack
				}
			}
			if leaked == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("a goroutine of the library goes on:\n%s", leaked)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// TestTrace follows a message from a request in one process to its handler in another.
func TestTrace(t *testing.T) {
	checkLeaks(t)
	db := newDB(t)
	shop, worker := newTelemetry(t, db), newTelemetry(t, db)
	create(t, shop.Broker, 5)

	ctx, request := shop.tracer.Start(t.Context(), "request")
	ids, err := shop.Publish(ctx, "orders", fastpubsub.NewMessage{
		Payload: []byte(`{"card":"` + hidden + `"}`), Attributes: map[string]string{"shop": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	request.End()
	published := shop.span(t, "publish orders")
	if published.SpanContext().TraceID() != request.SpanContext().TraceID() || published.Parent().SpanID() != request.SpanContext().SpanID() {
		t.Errorf("the publish span is not a child of the request's")
	}
	want := map[string]string{"messaging.system": "fastpubsub", "messaging.operation.name": "publish", "messaging.operation.type": "send",
		"messaging.destination.name": "orders", "messaging.message.id": ids[0].String(), "server.address": "db.example.com"}
	if diff := cmp.Diff(want, attributesOf(published.Attributes())); diff != "" {
		t.Errorf("publish span (-want +got):\n%s", diff)
	}
	if published.SpanKind() != trace.SpanKindProducer || published.Status().Code != codes.Unset {
		t.Errorf("the publish span is of kind %v with status %v", published.SpanKind(), published.Status())
	}

	var got map[string]string
	var inHandler trace.SpanContext
	received(t, 1, func(ctx context.Context, handled func()) error {
		return worker.ReceiveTx(ctx, "emails", func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
			defer handled()
			got, inHandler = msg.Attributes, trace.SpanContextFromContext(ctx)
			_, err := worker.PublishTx(ctx, tx, "orders", fastpubsub.NewMessage{Payload: []byte(`{}`)})
			return err
		}, fastpubsub.ReceiveOptions{Concurrency: 1})
	})
	process := worker.span(t, "process emails")
	if process.Parent().SpanID() != published.SpanContext().SpanID() || process.SpanContext().TraceID() != request.SpanContext().TraceID() ||
		!process.Parent().IsRemote() {
		t.Errorf("the process span's parent is %v, want the publish span %v", process.Parent(), published.SpanContext())
	}
	if links := process.Links(); len(links) != 1 || links[0].SpanContext.SpanID() != published.SpanContext().SpanID() {
		t.Errorf("the process span has links %v, want one to the publish span", links)
	}
	want = map[string]string{"messaging.system": "fastpubsub", "messaging.operation.name": "process", "messaging.operation.type": "process",
		"messaging.destination.name": "orders", "messaging.destination.subscription.name": "emails", "messaging.message.id": ids[0].String(),
		"messaging.fastpubsub.message.delivery_attempts": "1", "messaging.fastpubsub.outcome": "acked",
		"messaging.fastpubsub.in_transaction": "true", "server.address": "db.example.com"}
	if diff := cmp.Diff(want, attributesOf(process.Attributes())); diff != "" {
		t.Errorf("process span (-want +got):\n%s", diff)
	}
	if process.SpanKind() != trace.SpanKindConsumer || !inHandler.Equal(process.SpanContext()) {
		t.Errorf("the handler has the span %v, want the process span %v of kind consumer, not %v", inHandler, process.SpanContext(), process.SpanKind())
	}
	if got["shop"] != "1" || !strings.Contains(got["traceparent"], published.SpanContext().SpanID().String()) || len(got) != 2 {
		t.Errorf("attributes are %v, want the message's own and the publish span as traceparent", got)
	}
	for _, name := range []string{"ack emails", "publish orders"} { // in the handler's transaction
		child := worker.span(t, name)
		if child.Parent().SpanID() != process.SpanContext().SpanID() || attributesOf(child.Attributes())["messaging.fastpubsub.in_transaction"] != "true" {
			t.Errorf("the span %q is not in the process span and its transaction: %v", name, child.Attributes())
		}
	}
	shop.checkHidden(t)
	worker.checkHidden(t)
}

// TestReceiveSpans has no spans but those of handlers: what Receive does for itself belongs to many traces.
func TestReceiveSpans(t *testing.T) {
	checkLeaks(t)
	db := newDB(t)
	s := newTelemetry(t, db, func(c *otelfastpubsub.Config) { c.Linked = true })
	create(t, s.Broker, 1)
	payloads := []string{`{"n":1,"card":"` + hidden + `"}`, `{"n":2}`, `{"n":3}`, `{"n":4}`}
	msgs := make([]fastpubsub.NewMessage, len(payloads))
	for i, p := range payloads {
		msgs[i].Payload = []byte(p)
	}
	if _, err := s.Publish(t.Context(), "orders", msgs...); err != nil {
		t.Fatal(err)
	}
	published := s.span(t, "publish orders")
	if got := attributesOf(published.Attributes())["messaging.batch.message_count"]; got != "4" {
		t.Errorf("the publish span has %q messages, want 4", got)
	}
	received(t, 4, func(ctx context.Context, handled func()) error {
		return s.Receive(ctx, "emails", fastpubsub.Decode(func(ctx context.Context, v struct{ N int }, msg fastpubsub.Message) error {
			defer handled()
			switch v.N {
			case 1:
				return fastpubsub.Permanent(errors.New("no such card"))
			case 2:
				return fmt.Errorf("mail: %w", context.DeadlineExceeded)
			case 3:
				return fastpubsub.Snooze(time.Hour)
			default:
				panic("no room")
			}
		}), fastpubsub.ReceiveOptions{Concurrency: 1})
	})
	type handled struct {
		outcome, kind, status string
		code                  codes.Code
		events                int
	}
	want := []handled{
		{"dead_letter", "*fastpubsub.permanentError", "no such card", codes.Error, 1},
		{"dead_letter", "timeout", "mail: context deadline exceeded", codes.Error, 1},
		{"snoozed", "", "", codes.Unset, 0},
		{"dead_letter", "*errors.errorString", "panic: no room", codes.Error, 1},
	}
	var got []handled
	for _, span := range s.spans.Ended() {
		switch span.Name() {
		case "publish orders":
			continue
		case "process emails":
		default:
			t.Errorf("there is a span %q", span.Name())
			continue
		}
		all := attributesOf(span.Attributes())
		got = append(got, handled{all["messaging.fastpubsub.outcome"], all["error.type"], span.Status().Description, span.Status().Code, len(span.Events())})
		if span.Parent().IsValid() || span.SpanContext().TraceID() == published.SpanContext().TraceID() {
			t.Errorf("the process span has the parent %v, want a trace of its own", span.Parent())
		}
		if links := span.Links(); len(links) != 1 || links[0].SpanContext.SpanID() != published.SpanContext().SpanID() {
			t.Errorf("the process span has links %v, want one to the publish span", links)
		}
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(handled{})); diff != "" {
		t.Errorf("handled (-want +got):\n%s", diff)
	}
	s.checkHidden(t)
	counts := s.metrics(t)
	for key, want := range map[string]int64{
		"messaging.process.duration dead_letter *errors.errorString emails orders process process": 1,
		"messaging.process.duration snoozed emails orders process process":                         1,
		"messaging.client.consumed.messages emails consume receive":                                4,
		"messaging.client.sent.messages orders publish send":                                       4,
		"messaging.fastpubsub.dead_letters emails nack settle":                                     3,
		"messaging.fastpubsub.settled.messages emails nack settle":                                 4,
	} {
		if counts[key] != want {
			t.Errorf("%s is %d, want %d; there are %v", key, counts[key], want, counts)
		}
	}
}

// metrics are all counters, and the counts of histograms, by their names and the values of attributes.
func (s *telemetry) metrics(t *testing.T) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := s.reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	add := func(name string, set attribute.Set, n int64) {
		for _, key := range []attribute.Key{"messaging.fastpubsub.outcome", "error.type", "messaging.destination.subscription.name",
			"messaging.destination.name", "messaging.operation.name", "messaging.operation.type"} {
			if v, ok := set.Value(key); ok {
				name += " " + v.String()
			}
		}
		for _, key := range []attribute.Key{"messaging.system", "server.address"} {
			if _, ok := set.Value(key); !ok {
				t.Errorf("%s has no %s", name, key)
			}
		}
		counts[name] += n
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					add(m.Name, p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				if m.Unit != "s" {
					t.Errorf("%s is in %q, want s", m.Name, m.Unit)
				}
				for _, p := range data.DataPoints {
					if p.Sum < 0 || p.Sum > 600 {
						t.Errorf("%s has %v seconds", m.Name, p.Sum)
					}
					add(m.Name, p.Attributes, int64(p.Count))
				}
			default:
				t.Errorf("%s is a %T", m.Name, data)
			}
		}
	}
	return counts
}

// TestConsumeSpans takes and settles messages without Receive.
func TestConsumeSpans(t *testing.T) {
	checkLeaks(t)
	db := newDB(t)
	s := newTelemetry(t, db)
	create(t, s.Broker, 5)
	empty, err := s.Consume(t.Context(), "emails", fastpubsub.ConsumeOptions{Consumer: "w"})
	if err != nil || len(empty) > 0 || len(s.spans.Ended()) > 0 {
		t.Fatalf("took %v, %v, and there are spans %v, want none", empty, err, s.spans.Ended())
	}

	custom := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx, parent := s.tracer.Start(t.Context(), "batch")
	_, err = s.Publish(ctx, "orders", fastpubsub.NewMessage{Payload: []byte(`{}`)},
		fastpubsub.NewMessage{Payload: []byte(`{}`), Attributes: map[string]string{"traceparent": custom, "tracestate": "a=b"}})
	if err != nil {
		t.Fatal(err)
	}
	published := s.span(t, "publish orders")
	if links := published.Links(); len(links) != 1 || links[0].SpanContext.SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("the publish span has links %v, want one to the trace that a message brought", links)
	}
	msgs, err := s.Consume(ctx, "emails", fastpubsub.ConsumeOptions{Consumer: "w"})
	if err != nil || len(msgs) != 2 {
		t.Fatal(msgs, err)
	}
	if diff := cmp.Diff(map[string]string{"traceparent": custom, "tracestate": "a=b"}, msgs[1].Attributes); diff != "" {
		t.Errorf("attributes of the message with a trace (-want +got):\n%s", diff)
	}
	if got := trace.SpanContextFromContext(s.hooks.Context(t.Context(), msgs[0])); got.SpanID() != published.SpanContext().SpanID() || !got.IsRemote() {
		t.Errorf("a message's context has the span %v, want that which published it", got)
	}
	if n, err := s.Ack(ctx, "emails", []fastpubsub.ID{msgs[0].ID, msgs[1].ID}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := s.Nack(ctx, "missing", []fastpubsub.Delivery{msgs[0].Delivery}, fastpubsub.NackOptions{}); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Fatal(err)
	}
	parent.End()
	if links := s.span(t, "consume emails").Links(); len(links) != 2 {
		t.Errorf("the consume span has links %v, want one for each message", links)
	}
	for name, count := range map[string]string{"consume emails": "2", "ack emails": "2"} {
		span := s.span(t, name)
		if got := attributesOf(span.Attributes())["messaging.batch.message_count"]; got != count || span.SpanKind() != trace.SpanKindClient {
			t.Errorf("the span %q has %q messages and kind %v, want %s and client", name, got, span.SpanKind(), count)
		}
		if span.Parent().SpanID() != parent.SpanContext().SpanID() {
			t.Errorf("the span %q is not in the caller's", name)
		}
	}
	failed := s.span(t, "nack missing")
	if got := attributesOf(failed.Attributes())["error.type"]; got != "not_found" || failed.Status().Code != codes.Error {
		t.Errorf("the failed span has error.type %q and status %v", got, failed.Status())
	}
	counts := s.metrics(t)
	for key, want := range map[string]int64{
		"messaging.client.operation.duration not_found nack settle":  1, // anybody might name any
		"messaging.client.operation.duration emails ack settle":      1,
		"messaging.client.operation.duration emails consume receive": 2,
		"messaging.client.operation.duration orders publish send":    1,
		"messaging.fastpubsub.settled.messages emails ack settle":    2,
	} {
		if counts[key] != want {
			t.Errorf("%s is %d, want %d; there are %v", key, counts[key], want, counts)
		}
	}
}

// TestRefused publishes what cannot be.
func TestRefused(t *testing.T) {
	db := newDB(t)
	s := newTelemetry(t, db)
	create(t, s.Broker, 5)
	if _, err := s.Publish(t.Context(), "orders", fastpubsub.NewMessage{Payload: []byte(`["` + hidden + `"]`)}); !errors.Is(err, fastpubsub.ErrInvalid) {
		t.Fatal(err)
	}
	if _, err := s.Publish(t.Context(), "unknown", fastpubsub.NewMessage{Payload: []byte(`{}`)}); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Fatal(err)
	}
	if got := attributesOf(s.span(t, "publish orders").Attributes())["error.type"]; got != "invalid" {
		t.Errorf("error.type is %q, want invalid", got)
	}
	s.checkHidden(t)
	counts := s.metrics(t)
	for _, kind := range []string{"invalid", "not_found"} {
		if key := "messaging.client.sent.messages " + kind + " publish send"; counts[key] != 1 {
			t.Errorf("%s is %d, want 1; there are %v", key, counts[key], counts)
		}
	}
}
