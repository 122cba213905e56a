package fastpubsub

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub/store"
)

// TestNoHooksCostNothing counts allocations without hooks beside those of the work alone.
func TestNoHooksCostNothing(t *testing.T) {
	b := &Broker{}
	b.checked.Store(true)
	ctx := t.Context()
	msgs := []NewMessage{{Payload: []byte(`{"n":1}`)}} // attributes go through a sync.Pool, which forgets under the race detector
	ids := []ID{newID(1, 1)}
	send := func(context.Context, string, []string, []*string) ([]ID, error) { return ids, nil }
	run := func(context.Context, store.DBTX, string, []store.Range) (int, error) { return 1, nil }
	deliveries := deliveriesOf(ids)
	r := &receiver{id: "s", topic: "t"}
	it := &item{msg: Message{Delivery: deliveries[0]}}
	for _, test := range []struct {
		name      string
		with, own func()
	}{
		{"publish", func() { _, _ = b.publish(ctx, nil, "t", msgs, send) }, func() { _, _ = b.publishWith(ctx, nil, "t", msgs, nil, send) }},
		{"ack", func() { _, _ = b.change(ctx, nil, Operation{Kind: OpAck, SubscriptionID: "s"}, deliveries, run) },
			func() { _ = ranges(deliveries) }},
		{"consume", func() {
			_, op := b.hooks.start(ctx, Operation{Kind: OpConsume, SubscriptionID: "s"})
			b.hooks.end(ctx, op, 1, nil)
		}, func() {}},
		{"handle", func() {
			_, op := b.hooks.startHandling(ctx, r, it)
			b.hooks.endHandling(ctx, op, OutcomeAcked, nil)
		}, func() {}},
	} {
		if with, own := testing.AllocsPerRun(100, test.with), testing.AllocsPerRun(100, test.own); with != own {
			t.Errorf("%s: %v allocations, want the %v of the work itself", test.name, with, own)
		}
	}
}

func TestWithAttributes(t *testing.T) {
	t.Parallel()
	many := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[strings.Repeat("k", i+1)] = "v"
		}
		return m
	}
	hooked := map[string]string{"traceparent": "p", "tracestate": "s"}
	fits := many(62)
	fits["traceparent"], fits["tracestate"] = "p", "s"
	for _, test := range []struct {
		reason      string
		own, hooked map[string]string
		want        map[string]string
	}{
		{"without hooks nothing changes", map[string]string{"a": "b"}, nil, map[string]string{"a": "b"}},
		{"both", map[string]string{"a": "b"}, hooked, map[string]string{"a": "b", "traceparent": "p", "tracestate": "s"}},
		{"none of its own", nil, hooked, hooked},
		{"one of the keys, and so none of them", map[string]string{"tracestate": "own"}, hooked, map[string]string{"tracestate": "own"}},
		{"just within the limit", many(62), hooked, fits},
		{"beyond the limit", many(63), hooked, many(63)},
	} {
		own := len(test.own)
		if diff := cmp.Diff(test.want, withAttributes(test.own, test.hooked)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.reason, diff)
		}
		if len(test.own) != own {
			t.Errorf("%s: the caller's map was changed", test.reason)
		}
	}
}

// TestHookedAttributes has messages that are as large, and have as many attributes, as they may: hooks are no reason to refuse
// them, and what hooks add against the rules is left out.
func TestHookedAttributes(t *testing.T) {
	t.Parallel()
	own := map[string]string{"a": "b"}
	text := func(msgs []NewMessage, hooked map[string]string) []string {
		t.Helper()
		_, attributes, err := encode(msgs, hooked)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, a := range attributes {
			if a == nil {
				all = append(all, "none")
			} else {
				all = append(all, *a)
			}
		}
		return all
	}
	msgs := []NewMessage{{Payload: []byte(`{}`)}, {Payload: []byte(`{}`), Attributes: own}}
	for _, test := range []struct {
		reason string
		hooked map[string]string
		want   []string
	}{
		{"no hooks", nil, []string{"none", `{"a":"b"}`}},
		{"a trace", map[string]string{"traceparent": "p"}, []string{`{"traceparent":"p"}`, `{"a":"b","traceparent":"p"}`}},
		{"too long", map[string]string{"tracestate": strings.Repeat("s", maxAttributeBytes+1)}, []string{"none", `{"a":"b"}`}},
		{"not UTF-8", map[string]string{"tracestate": "\xff"}, []string{"none", `{"a":"b"}`}},
	} {
		if diff := cmp.Diff(test.want, text(msgs, test.hooked)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.reason, diff)
		}
	}

	half := []byte(`{"p":"` + strings.Repeat("x", maxPayloadBytes-len(`{"p":""}`)) + `"}`)
	last := half[:len(half)-len(`{"a":"b"}`)-2]
	full := []NewMessage{{Payload: half}, {Payload: half}, {Payload: half}, {Payload: append(last[:len(last):len(last)], `"}`...), Attributes: own}}
	for _, hooked := range []map[string]string{nil, {"traceparent": "p"}} {
		if _, _, err := encode(full, hooked); err != nil {
			t.Errorf("64 MiB with attributes %v of hooks: %v", hooked, err)
		}
		more := append(full[:3:3], NewMessage{Payload: full[3].Payload, Attributes: map[string]string{"a": "bb"}})
		if _, _, err := encode(more, hooked); err == nil {
			t.Errorf("a byte more than 64 MiB with attributes %v of hooks is not refused", hooked)
		}
	}
}
