package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/internal/jsontext"
)

// fuzzed sends a request with a raw path and query, which need not be possible over HTTP, and checks what holds for all.
func fuzzed(t *testing.T, b *broker, method, path, query, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := (&http.Request{
		Method: method, URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{}, Host: "api",
		Body: http.NoBody, ContentLength: int64(len(body)),
	}).WithContext(t.Context())
	if body != "" {
		r.Body = io.NopCloser(strings.NewReader(body))
	}
	w := httptest.NewRecorder()
	httpapi.New(b, httpapi.Config{Logger: silent}).ServeHTTP(w, r)
	if w.Code >= 500 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if w.Code == 422 {
		var answer struct{ Detail []struct{ Type, Msg string } }
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || len(answer.Detail) == 0 || answer.Detail[0].Type == "" || answer.Detail[0].Msg == "" {
			t.Fatalf("problems %s: %v", w.Body, err)
		}
	}
	return w
}

// referenceIDs reads a list of ids with encoding/json.
func referenceIDs(list string) (ids []fastpubsub.ID, ok bool) {
	var texts []*string
	if !strings.HasPrefix(strings.TrimLeft(list, " \t\r\n"), "[") || json.Unmarshal([]byte(list), &texts) != nil {
		return nil, false
	}
	for _, text := range texts {
		if text == nil || uuid.Validate(*text) != nil {
			return nil, false
		}
		ids = append(ids, fastpubsub.ID(uuid.MustParse(*text)))
	}
	return ids, len(ids) <= 1000
}

var idSeeds = []string{`[]`, ` [ ] `, `[` + anID + `]`, `[` + anID + `,` + anID + `]`, `["550E8400E29B81D4A716446655440000"]`, `["{550e8400-e29b-81d4-a716-446655440000}"]`,
	`["urn:uuid:550e8400-e29b-81d4-a716-446655440000"]`, `["\u0035\u0035\u0030e8400-e29b-81d4-a716-446655440000"]`, `[null]`, `[1]`, `["x"]`, `[[]]`, `{}`, `[` + anID + `]]`,
	`[` + anID + `,]`, `["\ud800"]`, `["]`, `["` + "\xff" + `"]`, `[` + anID + ` ` + anID + `]`, `null`, `[`}

// What is acked is what encoding/json reads as a list of UUIDs.
func FuzzIDs(f *testing.F) {
	for _, seed := range idSeeds {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		b := working()
		var got []fastpubsub.ID
		b.ack = func(_ string, ids []fastpubsub.ID) (int, error) {
			got = ids
			return len(ids), nil
		}
		w := fuzzed(t, b, "POST", "/subscriptions/s/acks", "", body)
		want, ok := referenceIDs(body)
		if (w.Code == 204) != ok || w.Code != 204 && w.Code != 422 {
			t.Fatalf("%q: status %d %s, accepted by encoding/json: %v", body, w.Code, w.Body, ok)
		}
		if ok && !slices.Equal(want, got) {
			t.Errorf("%q: ids %v, want %v", body, got, want)
		}
	})
}

// wholeNumber reads a JSON number that is whole and from lowest to highest.
func wholeNumber(text string, lowest, highest int64) (n int64, ok bool) {
	r, ok := new(big.Rat).SetString(text)
	if !ok || !r.IsInt() || !r.Num().IsInt64() || r.Num().Int64() < lowest || r.Num().Int64() > highest {
		return 0, false
	}
	return r.Num().Int64(), true
}

// A nack is a list of ids, or an object that has one and perhaps a delay.
func FuzzNack(f *testing.F) {
	for _, seed := range idSeeds {
		f.Add(seed)
		f.Add(`{"ids":` + seed + `}`)
	}
	for _, delay := range []string{`0`, `7`, `7.0`, `70e-1`, `7e0`, `0.5`, `-1`, `-0`, `null`, `"7"`, `true`, `31622400`, `31622401`, `1e400`, `99999999999999999999`, `[]`} {
		f.Add(`{"ids":[` + anID + `],"delay_seconds":` + delay + `}`)
	}
	f.Add(`{"ids":1,"ids":[` + anID + `],"x":{}}`)
	f.Add(`{"\u0069ds":[` + anID + `]}`)
	for _, more := range []string{`"error":"no"`, `"error":null`, `"error":5`, `"dead_letter":true`, `"dead_letter":null`, `"uncounted":true,"dead_letter":false`, `"uncounted":1`} {
		f.Add(`{"ids":[` + anID + `],` + more + `}`)
	}
	for _, attempts := range []string{`1`, `0`, `-1`, `1.5`, `2147483647`, `2147483648`, `1e400`, `"1"`, `null`} {
		f.Add(`{"deliveries":[{"id":` + anID + `,"delivery_attempts":` + attempts + `}]}`)
	}
	f.Add(`{"deliveries":[{"id":5,"delivery_attempts":1}, 5, {}]}`)
	f.Add(`{"deliveries":[],"ids":[]}`)
	f.Add(`{"deliveries":null,"ids":[]}`)
	f.Fuzz(func(t *testing.T, body string) {
		b := working()
		var got []fastpubsub.Delivery
		var options fastpubsub.NackOptions
		b.nack = func(_ string, ds []fastpubsub.Delivery, o fastpubsub.NackOptions) (int, error) {
			got, options = ds, o
			return 0, nil
		}
		w := fuzzed(t, b, "POST", "/subscriptions/s/nacks", "", body)
		ids, ok := referenceIDs(body)
		var want []fastpubsub.Delivery
		var wantOptions fastpubsub.NackOptions
		if strings.HasPrefix(strings.TrimLeft(body, " \t\r\n"), "{") {
			var members map[string]json.RawMessage
			ok = jsontext.CheckObject([]byte(body)) == nil && json.Unmarshal([]byte(body), &members) == nil
			if deliveries := string(members["deliveries"]); ok && deliveries != "" && deliveries != "null" {
				want, ok = referenceDeliveries(deliveries)
				ok = ok && members["ids"] == nil
			} else if ok {
				ids, ok = referenceIDs(string(members["ids"]))
			}
			if text := string(members["error"]); ok && text != "" && text != "null" {
				ok = json.Unmarshal(members["error"], &wantOptions.Error) == nil
			}
			for name, flag := range map[string]*bool{"dead_letter": &wantOptions.DeadLetter, "uncounted": &wantOptions.Uncounted} {
				if text := string(members[name]); ok && text != "" && text != "null" {
					ok = json.Unmarshal(members[name], flag) == nil
				}
			}
			if delay := string(members["delay_seconds"]); ok && delay != "" && delay != "null" {
				var n int64
				n, ok = wholeNumber(delay, 0, 366*24*60*60)
				wantOptions.Delay, wantOptions.Immediate = time.Duration(n)*time.Second, n == 0
			}
		}
		if (w.Code == 204) != ok || w.Code != 204 && w.Code != 422 {
			t.Fatalf("%q: status %d %s, accepted by encoding/json: %v", body, w.Code, w.Body, ok)
		}
		if !ok {
			return
		}
		for _, id := range ids {
			want = append(want, fastpubsub.Delivery{ID: id})
		}
		if !slices.Equal(want, got) || options != wantOptions {
			t.Errorf("%q: %v %+v, want %v %+v", body, got, options, want, wantOptions)
		}
	})
}

func referenceDeliveries(text string) (all []fastpubsub.Delivery, ok bool) {
	var list []map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &list) != nil {
		return nil, false
	}
	for _, members := range list {
		ids, ok := referenceIDs("[" + string(members["id"]) + "]")
		n, whole := wholeNumber(string(members["delivery_attempts"]), 1, math.MaxInt32)
		if !ok || !whole || len(ids) != 1 {
			return nil, false
		}
		all = append(all, fastpubsub.Delivery{ID: ids[0], DeliveryAttempts: int(n)})
	}
	return all, len(all) <= 1000
}

var decimal = regexp.MustCompile(`^-?[0-9]+$`)

// Parameters of consume are what net/url says, and decimal numbers.
func FuzzConsumeQuery(f *testing.F) {
	for _, seed := range []string{"", "consumer_id=w", "consumer_id=&consumer_id=w", "consumer_id=w&batch_size=100&wait_seconds=30&ack_deadline_seconds=43200",
		"consumer_id=w&batch_size=0", "consumer_id=w&batch_size=101", "consumer_id=w&batch_size=%31", "consumer_id=w&batch_size=+1", "consumer_id=w&batch_size=1.0",
		"consumer_id=w&batch_size=007", "consumer_id=w&wait_seconds=-0", "consumer_id=w&wait_seconds=99999999999999999999", "consumer_id=%ff", "consumer_id=%00",
		"consumer_id=%C3%A9", "consumer_id=w;batch_size=1", "consumer_id=%", "consumer_id=w&batch_size", "consumer_id=" + strings.Repeat("x", 129), "&&&=&consumer_id=w"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		b := working()
		var got fastpubsub.ConsumeOptions
		b.consume = func(_ context.Context, _ string, o fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
			got = o
			return nil, nil
		}
		w := fuzzed(t, b, "GET", "/subscriptions/s/messages", query, "")
		values, err := url.ParseQuery(query)
		ok := err == nil
		integer := func(name string, missing, lowest, highest int64) int64 {
			all := values[name]
			if len(all) == 0 {
				return missing
			}
			n, valid := new(big.Int).SetString(all[len(all)-1], 10)
			if !valid || !decimal.MatchString(all[len(all)-1]) || !n.IsInt64() || n.Int64() < lowest || n.Int64() > highest {
				ok = false
				return 0
			}
			return n.Int64()
		}
		want := fastpubsub.ConsumeOptions{
			Max:         int(integer("batch_size", 10, 1, 100)),
			Wait:        time.Duration(integer("wait_seconds", 0, 0, 30)) * time.Second,
			AckDeadline: time.Duration(integer("ack_deadline_seconds", 0, 1, 43200)) * time.Second,
		}
		if all := values["consumer_id"]; len(all) > 0 {
			want.Consumer = all[len(all)-1]
		}
		if n := utf8.RuneCountInString(want.Consumer); n < 1 || n > 128 || !utf8.ValidString(want.Consumer) || strings.ContainsRune(want.Consumer, 0) {
			ok = false
		}
		if (w.Code == 200) != ok || w.Code != 200 && w.Code != 422 {
			t.Fatalf("%q: status %d %s, want accepted %v", query, w.Code, w.Body, ok)
		}
		if ok && got != want {
			t.Errorf("%q: %+v, want %+v", query, got, want)
		}
	})
}

var wantedID = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,128}$`)

// A subscription is what encoding/json reads, within the rules for each field.
func FuzzSubscription(f *testing.F) {
	for _, seed := range []string{`{"id":"s","topic_id":"t"}`, `{"id":"s","topic_id":"t","filter":null}`, `{"id":"s","topic_id":"t","filter":{"a":["x",1,true]}}`,
		`{"id":"s","topic_id":"t","filter":{"a":[]}}`, `{"id":"s","topic_id":"t","filter":[]}`, `{"id":"s","topic_id":"t","filter":{"a":[{}]}}`, `{"id":".","topic_id":".."}`,
		`{"id":"s","topic_id":"t","max_delivery_attempts":1,"backoff_min_seconds":2.0,"backoff_max_seconds":3e0,"ack_deadline_seconds":43200}`,
		`{"id":"s","topic_id":"t","max_delivery_attempts":0}`, `{"id":"s","topic_id":"t","max_delivery_attempts":2147483648}`, `{"id":"\u0073","id":"\u0074","topic_id":"t"}`,
		`{"id":1}`, `{}`, `[]`, `{"id":"s","topic_id":"t"}}`, `{"id":"s","topic_id":"t","x":"\u0000"}`, `{"id":"é","topic_id":" "}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		b := working()
		var got *fastpubsub.Subscription
		b.createSubscription = func(s fastpubsub.Subscription) (fastpubsub.Subscription, error) {
			got = &s
			return s, nil
		}
		w := fuzzed(t, b, "POST", "/subscriptions", "", body)
		var members map[string]json.RawMessage
		ok := jsontext.CheckObject([]byte(body)) == nil && json.Unmarshal([]byte(body), &members) == nil
		id := func(name string) (s string) {
			if json.Unmarshal(members[name], &s) != nil || !wantedID.MatchString(s) || s == "." || s == ".." {
				ok = false
			}
			return s
		}
		integer := func(name string, highest int64) int64 {
			text := string(members[name])
			if text == "" || text == "null" {
				return 0
			}
			n, whole := wholeNumber(text, 1, highest)
			ok = ok && whole
			return n
		}
		var want fastpubsub.Subscription
		if ok {
			want = fastpubsub.Subscription{ID: id("id"), TopicID: id("topic_id"), SubscriptionSettings: fastpubsub.SubscriptionSettings{
				MaxDeliveryAttempts: int(integer("max_delivery_attempts", 1<<31-1)),
				BackoffMin:          time.Duration(integer("backoff_min_seconds", 1<<31-1)) * time.Second,
				BackoffMax:          time.Duration(integer("backoff_max_seconds", 1<<31-1)) * time.Second,
				AckDeadline:         time.Duration(integer("ack_deadline_seconds", 43200)) * time.Second,
			}}
			if filter, has := members["filter"]; has {
				var err error
				want.Filter, err = fastpubsub.ParseFilter(filter)
				ok = ok && err == nil
			}
		}
		if (w.Code == 201) != ok || w.Code != 201 && w.Code != 422 {
			t.Fatalf("%q: status %d %s, want accepted %v", body, w.Code, w.Body, ok)
		}
		if !ok {
			return
		}
		wantJSON, gotJSON := filterText(t, want.Filter), filterText(t, got.Filter)
		want.Filter, got.Filter = fastpubsub.Filter{}, fastpubsub.Filter{}
		if diff := cmp.Diff(want.SubscriptionSettings, got.SubscriptionSettings); diff != "" || want.ID != got.ID || want.TopicID != got.TopicID || wantJSON != gotJSON {
			t.Errorf("%q: %q %q %s, want %q %q %s; settings (-want +got):\n%s", body, got.ID, got.TopicID, gotJSON, want.ID, want.TopicID, wantJSON, diff)
		}
	})
}

func filterText(t *testing.T, f fastpubsub.Filter) string {
	t.Helper()
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The form of a publish that has attributes: accepted is what encoding/json reads, payloads are the bytes of the body.
func FuzzPublishMessages(f *testing.F) {
	for _, seed := range []string{`{"messages":[]}`, `{"messages":[{"payload":{}}]}`, `{"messages":[{"payload":{"a" : 1.0},"attributes":{"k":"v"}}]}`, `{"messages":[{"payload":1}]}`,
		`{"messages":[{"payload":{},"attributes":{"k":1}}]}`, `{"messages":[{"payload":{},"attributes":null}]}`, `{"messages":{}}`, `{"messages":[1]}`, `{"messages":null}`,
		`{"messages":[{"payload":{"a":"\u0000"}}]}`, `{"messages":[{"payload":{}}]} x`, `{"\u006dessages":[{"payload":{}}]}`, `{"messages":1,"messages":[{"payload":{},"payload":{"a":1}}]}`, `{}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		b := working()
		var got []fastpubsub.NewMessage
		b.publish = func(_ string, msgs []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
			got = msgs
			return nil, nil
		}
		if !strings.HasPrefix(strings.TrimLeft(body, " \t\r\n"), "{") {
			return // FuzzPublish
		}
		w := fuzzed(t, b, "POST", "/topics/t/messages", "", body)
		var members map[string]json.RawMessage
		var items []json.RawMessage
		ok := json.Unmarshal([]byte(body), &members) == nil && bytes.HasPrefix(members["messages"], []byte("[")) &&
			json.Unmarshal(members["messages"], &items) == nil && len(items) <= 10_000
		var want []fastpubsub.NewMessage
		for _, item := range items {
			var fields map[string]json.RawMessage
			ok = ok && bytes.HasPrefix(item, []byte("{")) && json.Unmarshal(item, &fields) == nil && jsontext.CheckObject(fields["payload"]) == nil
			msg := fastpubsub.NewMessage{Payload: fields["payload"]}
			if attributes := fields["attributes"]; ok && attributes != nil && string(attributes) != "null" {
				var values map[string]*string
				ok = jsontext.CheckObject(attributes) == nil && json.Unmarshal(attributes, &values) == nil
				msg.Attributes = map[string]string{}
				for key, value := range values {
					if value == nil {
						ok = false
						break
					}
					msg.Attributes[key] = *value
				}
			}
			want = append(want, msg)
		}
		if (w.Code == 204) != ok || w.Code != 204 && w.Code != 422 {
			t.Fatalf("%q: status %d %s, want accepted %v", body, w.Code, w.Body, ok)
		}
		if !ok {
			return
		}
		if len(want) != len(got) {
			t.Fatalf("%q: %d messages, want %d", body, len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(want[i].Payload, got[i].Payload) || len(want[i].Attributes) != len(got[i].Attributes) {
				t.Errorf("%q: message %d is %s %v, want %s %v", body, i, got[i].Payload, got[i].Attributes, want[i].Payload, want[i].Attributes)
			}
			for key, value := range want[i].Attributes {
				if got[i].Attributes[key] != value {
					t.Errorf("%q: attribute %q is %q, want %q", body, key, got[i].Attributes[key], value)
				}
			}
		}
	})
}

// Whatever the method, path, query and body: an answer, and none that is an error of the server.
func FuzzRequest(f *testing.F) {
	for _, path := range []string{"/topics/t", "/topics/t/messages", "/subscriptions", "/subscriptions/s/dlq", "/subscriptions/s/leases", "/subscriptions/s/dlq/reprocess",
		"/subscriptions/s/metrics", "/readiness", "/", "", "*", "//", "/topics/..", "/topics/\x00/messages", "/topics/\xff"} {
		for _, method := range []string{"GET", "POST", "DELETE", "OPTIONS", "CONNECT", ""} {
			f.Add(method, path, "limit=1&offset=2", `{"ids":[`+anID+`],"ack_deadline_seconds":5}`)
		}
	}
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		fuzzed(t, working(), method, path, query, body)
	})
}
