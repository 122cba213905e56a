package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

// The broker gets what the request says, payloads byte for byte.
func TestPassedOn(t *testing.T) {
	t.Parallel()
	b := working()
	api := httpapi.New(b, httpapi.Config{Logger: silent})

	var msgs []fastpubsub.NewMessage
	b.publish = func(_ string, m []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
		msgs = m
		return nil, nil
	}
	do(api, "POST", "/topics/t/messages", "\t[ {\"a\" : 1.0, \"a\":\"],\\\"}\"} ,\n {\"b\":[[],{}]}\r]", nil)
	want := []string{`{"a" : 1.0, "a":"],\"}"}`, `{"b":[[],{}]}`}
	if diff := cmp.Diff(want, payloads(msgs)); diff != "" {
		t.Errorf("payloads of a list (-want +got):\n%s", diff)
	}
	do(api, "POST", "/topics/t/messages", `{"messages":[],"messages":[{"payload":1,"payload": { "a":1e2 } ,"attributes":{"k":"\u00e9","k":"v\""}},{"payload":{},"attributes":null}]}`, nil)
	want = []string{`{ "a":1e2 }`, `{}`}
	if diff := cmp.Diff(want, payloads(msgs)); diff != "" {
		t.Errorf("payloads of messages (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"k": `v"`}, msgs[0].Attributes); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}

	var options fastpubsub.ConsumeOptions
	b.consume = func(_ context.Context, _ string, o fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
		options = o
		return []fastpubsub.Message{{Delivery: fastpubsub.Delivery{ID: message1, DeliveryAttempts: 2}, SubscriptionID: "s",
			Payload: json.RawMessage("{\n}"), Attributes: map[string]string{"k\"": "v", "a": "<\n"}, CreatedAt: created.Add(time.Microsecond)}}, nil
	}
	w := do(api, "GET", "/subscriptions/s/messages?consumer_id=a&consumer_id=w%C3%A9&wait_seconds=3&ack_deadline_seconds=4", "", nil)
	wantOptions := fastpubsub.ConsumeOptions{Consumer: "wé", Max: 10, Wait: 3 * time.Second, AckDeadline: 4 * time.Second}
	if diff := cmp.Diff(wantOptions, options); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	wantBody := "{\"data\":[{\"id\":" + anID + ",\"subscription_id\":\"s\",\"payload\":{\n},\"delivery_attempts\":2," +
		`"created_at":"2025-12-29T15:30:00.000001Z","attributes":{"a":"<\n","k\"":"v"}}]}`
	if diff := cmp.Diff(wantBody, w.Body.String()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}

	var list fastpubsub.ListOptions
	b.listSubscriptions = func(o fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) {
		list = o
		return []fastpubsub.Subscription{subS, subS}, nil
	}
	w = do(api, "GET", "/subscriptions?offset=7&limit=100", "", nil)
	if diff := cmp.Diff(fastpubsub.ListOptions{Offset: 7, Limit: 100}, list); diff != "" {
		t.Errorf("list options (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(`{"data":[`+wireS+`,`+wireS+`]}`, w.Body.String()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

func payloads(msgs []fastpubsub.NewMessage) []string {
	var all []string
	for _, msg := range msgs {
		all = append(all, string(msg.Payload))
	}
	return all
}

// What is said about messages reaches the broker as it was meant.
func TestFailureOptions(t *testing.T) {
	t.Parallel()
	b := working()
	var got []any
	b.nack = func(_ string, ds []fastpubsub.Delivery, o fastpubsub.NackOptions) (int, error) {
		got = append(got, ds, o)
		return 0, nil
	}
	b.extend = func(_ string, ds []fastpubsub.Delivery, d time.Duration) (int, error) {
		got = append(got, ds, d)
		return 0, nil
	}
	api := httpapi.New(b, httpapi.Config{Logger: silent})
	for _, call := range [][2]string{
		{"/subscriptions/s/nacks", `[` + anID + `]`},
		{"/subscriptions/s/nacks", `{"ids":[` + anID + `]}`},
		{"/subscriptions/s/nacks", `{"ids":[` + anID + `],"delay_seconds":7}`},
		{"/subscriptions/s/nacks", `{"ids":[` + anID + `],"delay_seconds":0}`},
		{"/subscriptions/s/leases", `{"ids":[` + anID + `],"ack_deadline_seconds":9}`},
		{"/subscriptions/s/leases", `{"ids":[` + anID + `],"ack_deadline_seconds":0}`},
	} {
		if w := do(api, "POST", call[0], call[1], nil); w.Code != 204 {
			t.Errorf("%s %s: %d %s", call[0], call[1], w.Code, w.Body)
		}
	}
	one := []fastpubsub.Delivery{{ID: message1}}
	want := []any{one, fastpubsub.NackOptions{}, one, fastpubsub.NackOptions{}, one, fastpubsub.NackOptions{Delay: 7 * time.Second},
		one, fastpubsub.NackOptions{Immediate: true}, one, 9 * time.Second, one, time.Duration(0)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBodyEnds(t *testing.T) {
	t.Parallel()
	api := httpapi.New(&broker{}, httpapi.Config{Logger: silent, MaxBodyBytes: 10})
	for _, test := range []struct {
		reason string
		body   io.Reader
		status int
	}{
		{"cut off", io.MultiReader(strings.NewReader("[{}"), errorReader{}), 400},
		{"too large without a Content-Length", io.MultiReader(strings.NewReader("[{}       "), strings.NewReader("]")), 413},
	} {
		r := httptest.NewRequest("POST", "/topics/t/messages", test.body)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if w.Code != test.status {
			t.Errorf("%s: status %d, want %d: %s", test.reason, w.Code, test.status, w.Body)
		}
	}
}

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Whatever the body, the payloads that a broker gets are exactly the elements of the list, or the answer is 422.
func FuzzPublish(f *testing.F) {
	for _, seed := range []string{`[]`, `[{"a":1},{"b":"],\"["}]`, `[{}`, `[{}{}]`, `[{]]`, `["\"]`, ` [ {} , {} ] x`, `{"messages":[{"payload":{}}]}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		b := working()
		var got []fastpubsub.NewMessage
		b.publish = func(_ string, msgs []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
			got = msgs
			for i, msg := range msgs { // as the real one does
				if !json.Valid(msg.Payload) {
					return nil, &fastpubsub.InvalidError{Problems: []fastpubsub.Problem{
						{Field: fmt.Sprintf("messages.%d.payload", i), Type: "json_invalid", Msg: "must be JSON"}}}
				}
			}
			return nil, nil
		}
		w := do(httpapi.New(b, httpapi.Config{Logger: silent}), "POST", "/topics/t/messages", body, nil)
		switch w.Code {
		case 422:
			return
		case 204:
		default:
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		if strings.HasPrefix(strings.TrimLeft(body, " \t\r\n"), "{") {
			return
		}
		var want []json.RawMessage
		if err := json.Unmarshal([]byte(body), &want); err != nil {
			t.Fatalf("accepted %q: %v", body, err)
		}
		if len(want) != len(got) {
			t.Fatalf("%d messages of %q, want %d", len(got), body, len(want))
		}
		for i := range want {
			if !bytes.Equal(want[i], got[i].Payload) {
				t.Errorf("message %d of %q is %q, want %q", i, body, got[i].Payload, want[i])
			}
		}
	})
}

func TestMetricsAndDeadLetters(t *testing.T) {
	t.Parallel()
	b := working()
	api := httpapi.New(b, httpapi.Config{Logger: silent})
	for _, test := range []struct {
		reason  string
		metrics fastpubsub.Metrics
		want    string
	}{
		{"nothing yet", fastpubsub.Metrics{},
			`{"subscription_id":"s","available":0,"delivered":0,"acked":0,"dlq":0,"delayed":0,"oldest_unacked_age_seconds":0}`},
		{"estimated", fastpubsub.Metrics{Available: 1 << 40, OldestUnackedAge: 366*24*time.Hour + time.Microsecond, Estimated: true},
			`{"subscription_id":"s","available":1099511627776,"delivered":0,"acked":0,"dlq":0,"delayed":0,"oldest_unacked_age_seconds":31622400.000001,"available_estimated":true}`},
	} {
		b.metrics = func(string) (fastpubsub.Metrics, error) { return test.metrics, nil }
		w := do(api, "GET", "/subscriptions/s/metrics", "", nil)
		if diff := cmp.Diff(test.want, w.Body.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.reason, diff)
		}
	}

	var list []fastpubsub.ListOptions
	b.deadLetters = func(_ string, o fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error) {
		list = append(list, o)
		return nil, nil
	}
	for _, query := range []string{"", "?offset=7&limit=100"} {
		if w := do(api, "GET", "/subscriptions/s/dlq"+query, "", nil); w.Code != 200 || w.Body.String() != `{"data":[]}` {
			t.Errorf("dlq%s: %d %s", query, w.Code, w.Body)
		}
	}
	if diff := cmp.Diff([]fastpubsub.ListOptions{{Limit: 10}, {Offset: 7, Limit: 100}}, list); diff != "" {
		t.Errorf("list options (-want +got):\n%s", diff)
	}
}
