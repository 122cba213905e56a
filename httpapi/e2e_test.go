package httpapi_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// A client talks to a server over a real database.
type client struct {
	t   *testing.T
	url string
}

func serve(t *testing.T, db *storetest.DB) client {
	t.Helper()
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(httpapi.New(b, httpapi.Config{Logger: silent}))
	t.Cleanup(server.Close)
	return client{t, server.URL}
}

// do returns the body of the answer, which must have the status.
func (c client) do(method, path, body string, status int, headers header) string {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if answer.StatusCode != status {
		c.t.Fatalf("%s %s: %d %s, want %d", method, path, answer.StatusCode, text, status)
	}
	return string(text)
}

type message struct {
	ID               string            `json:"id"`
	SubscriptionID   string            `json:"subscription_id"`
	Payload          json.RawMessage   `json:"payload"`
	DeliveryAttempts int               `json:"delivery_attempts"`
	CreatedAt        string            `json:"created_at"`
	Attributes       map[string]string `json:"attributes"`
}

func (c client) consume(subscription string) []message {
	c.t.Helper()
	text := c.do("GET", "/subscriptions/"+subscription+"/messages?consumer_id=worker-1&batch_size=10", "", 200, nil)
	var answer struct{ Data []message }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		c.t.Fatalf("%s: %v", text, err)
	}
	return answer.Data
}

func TestSimplePubSub(t *testing.T) {
	t.Parallel()
	c := serve(t, storetest.New(t))
	isJSON := header{"Content-Type": "application/json"}
	returnIDs := header{"Prefer": "return=representation"}

	c.do("GET", "/readiness", "", 200, nil)
	c.do("POST", "/topics", `{"id": "notifications"}`, 201, isJSON)
	c.do("POST", "/topics", `{"id": "notifications"}`, 409, isJSON)
	c.do("POST", "/subscriptions", `{"id": "email-sender", "topic_id": "nowhere"}`, 404, isJSON)
	c.do("POST", "/subscriptions", `{"id": "email-sender", "topic_id": "notifications", "backoff_min_seconds": 301}`, 422, isJSON)
	created := c.do("POST", "/subscriptions", `{"id": "email-sender", "topic_id": "notifications"}`, 201, isJSON)
	c.do("POST", "/subscriptions", `{"id": "email-sender", "topic_id": "nowhere"}`, 409, isJSON)
	if diff := cmp.Diff(created, c.do("GET", "/subscriptions/email-sender", "", 200, nil)); diff != "" {
		t.Errorf("subscription (-created +got):\n%s", diff)
	}
	if diff := cmp.Diff(`{"data":[`+created+`]}`, c.do("GET", "/subscriptions", "", 200, nil)); diff != "" {
		t.Errorf("subscriptions (-want +got):\n%s", diff)
	}

	payload := `{"type": "email",  "to":"user@example.com","subject": "Welcome!\u00e9` + "\u00e9" + `","n":1.50e+1,"n":12345678901234567890}`
	var published struct{ IDs []string }
	text := c.do("POST", "/topics/notifications/messages", "[\n"+payload+"\n]", 201, returnIDs)
	if err := json.Unmarshal([]byte(text), &published); err != nil {
		t.Fatal(err)
	}
	c.do("POST", "/topics/notifications/messages", `{"messages":[{"payload":{},"attributes":{"trace":"1"}}]}`, 204, isJSON)
	c.do("POST", "/topics/notifications/messages", `[]`, 204, isJSON)
	c.do("POST", "/topics/notifications/messages", `[{}, 1, {"a":"\u0000"}]`, 422, isJSON)

	msgs := c.consume("email-sender")
	if len(msgs) == 1 { // another test's transaction was in progress that began between the two: a call stops there
		msgs = append(msgs, c.consume("email-sender")...)
	}
	if len(msgs) != 2 {
		t.Fatalf("%d messages, want 2: %v", len(msgs), msgs)
	}
	if string(msgs[0].Payload) != payload {
		t.Errorf("payload is %s, want %s", msgs[0].Payload, payload)
	}
	if msgs[0].ID != published.IDs[0] || msgs[0].SubscriptionID != "email-sender" || msgs[0].DeliveryAttempts != 1 ||
		!strings.HasSuffix(msgs[0].CreatedAt, "Z") {
		t.Errorf("message is %+v, published as %v", msgs[0], published.IDs)
	}
	if diff := cmp.Diff(map[string]string{"trace": "1"}, msgs[1].Attributes); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}

	acks := `["` + msgs[0].ID + `","` + msgs[1].ID + `","550e8400-e29b-41d4-a716-446655440000"]`
	if got := c.do("POST", "/subscriptions/email-sender/acks", acks, 200, returnIDs); got != `{"count":2}` {
		t.Errorf("ack: %s, want a count of 2", got)
	}
	c.do("POST", "/subscriptions/email-sender/acks", acks, 204, isJSON)
	c.do("POST", "/subscriptions/nobody/acks", `[]`, 404, isJSON)
	if got := c.do("GET", "/subscriptions/email-sender/messages?consumer_id=worker-1", "", 200, nil); got != `{"data":[]}` {
		t.Errorf("after the ack: %s, want nothing", got)
	}

	c.do("DELETE", "/topics/notifications", "", 204, nil)
	c.do("GET", "/subscriptions/email-sender", "", 404, nil)
	c.do("GET", "/topics/%ff", "", 404, nil)
	if got := c.do("GET", "/topics?offset=9223372036854775807&limit=100", "", 200, nil); got != `{"data":[]}` {
		t.Errorf("topics: %s, want none", got)
	}
}

func TestFilteredSubscription(t *testing.T) {
	t.Parallel()
	c := serve(t, storetest.New(t))
	c.do("POST", "/topics", `{"id": "user-events"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id": "regional-processor", "topic_id": "user-events", "filter": {"country": ["BR", "US"]}}`, 201, nil)
	c.do("POST", "/topics/user-events/messages", `[
		{"event": "user.login", "user_id": "1", "country": "BR"},
		{"event": "user.login", "user_id": "2", "country": "JP"},
		{"event": "user.login", "user_id": "3", "country": "US"}
	]`, 204, nil)
	var got []string
	for _, msg := range c.consume("regional-processor") {
		got = append(got, string(msg.Payload))
	}
	want := []string{
		`{"event": "user.login", "user_id": "1", "country": "BR"}`,
		`{"event": "user.login", "user_id": "3", "country": "US"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// The server answers while the database is away, and goes on when it is back.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	database, db := storetest.NewServer(t, nil)
	c := serve(t, db)
	c.do("POST", "/topics", `{"id": "t"}`, 201, nil)
	if err := database.Kill(); err != nil {
		t.Fatal(err)
	}
	const down = `{"detail":"database is down"}`
	for range 2 { // on a connection that has broken, then without one
		if got := c.do("POST", "/topics/t/messages", `[{}]`, 503, nil); got != down {
			t.Errorf("publish: %s, want %s", got, down)
		}
	}
	if got := c.do("GET", "/readiness", "", 503, nil); got != down {
		t.Errorf("readiness: %s, want %s", got, down)
	}
	c.do("GET", "/liveness", "", 200, nil)
	if err := database.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.do("GET", "/readiness", "", 200, nil)
	c.do("POST", "/topics/t/messages", `[{}]`, 204, nil)
}

func TestNotMigrated(t *testing.T) {
	t.Parallel()
	db := *storetest.New(t)
	db.Schema = "nowhere"
	c := serve(t, &db)
	const outdated = `{"detail":"database schema is out of date: run db-migrate"}`
	for _, path := range []string{"/readiness", "/topics"} {
		if got := c.do("GET", path, "", 503, nil); got != outdated {
			t.Errorf("GET %s: %s, want %s", path, got, outdated)
		}
	}
}

// A message fails until it is a dead letter, is looked at, and is reprocessed.
func TestFailedMessages(t *testing.T) {
	t.Parallel()
	c := serve(t, storetest.New(t))
	count := header{"Prefer": "return=representation"}
	c.do("POST", "/topics", `{"id":"t"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":2}`, 201, nil)
	const payload = `{"n" : 1.50e+1}`
	c.do("POST", "/topics/t/messages", `[`+payload+`,{"n":2}]`, 204, nil)
	msgs := c.consume("s")
	if len(msgs) != 2 {
		t.Fatalf("%d messages, want 2", len(msgs))
	}
	id := msgs[0].ID
	if got := c.do("POST", "/subscriptions/s/leases", `{"ids":["`+msgs[1].ID+`"],"ack_deadline_seconds":600}`, 200, count); got != `{"count":1}` {
		t.Errorf("extend: %s", got)
	}
	if got := c.do("POST", "/subscriptions/s/nacks", `{"ids":["`+id+`"],"delay_seconds":0}`, 200, count); got != `{"count":1}` {
		t.Errorf("nack: %s", got)
	}
	again := c.consume("s")
	if len(again) != 1 || again[0].ID != id || again[0].DeliveryAttempts != 2 || string(again[0].Payload) != payload {
		t.Fatalf("after a nack: %+v", again)
	}
	c.do("POST", "/subscriptions/s/nacks", `["`+id+`"]`, 204, nil)
	metrics := func() map[string]float64 {
		t.Helper()
		var m map[string]any
		if err := json.Unmarshal([]byte(c.do("GET", "/subscriptions/s/metrics", "", 200, nil)), &m); err != nil {
			t.Fatal(err)
		}
		counts := map[string]float64{}
		for _, name := range []string{"available", "delivered", "acked", "dlq", "delayed"} {
			counts[name], _ = m[name].(float64)
		}
		return counts
	}
	want := map[string]float64{"available": 0, "delivered": 1, "acked": 0, "dlq": 1, "delayed": 0}
	if diff := cmp.Diff(want, metrics()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	var dlq struct {
		Data []struct {
			message
			LastError *string `json:"last_error"`
			DeadAt    string  `json:"dead_at"`
		}
	}
	if err := json.Unmarshal([]byte(c.do("GET", "/subscriptions/s/dlq", "", 200, nil)), &dlq); err != nil {
		t.Fatal(err)
	}
	if len(dlq.Data) != 1 || dlq.Data[0].ID != id || string(dlq.Data[0].Payload) != payload || dlq.Data[0].DeliveryAttempts != 2 ||
		dlq.Data[0].LastError != nil || !strings.HasSuffix(dlq.Data[0].DeadAt, "Z") {
		t.Errorf("dead letters: %+v", dlq)
	}
	c.do("POST", "/subscriptions/s/dlq/reprocess", `["`+id+`"]`, 204, nil)
	back := c.consume("s")
	if len(back) != 1 || back[0].ID != id || back[0].DeliveryAttempts != 1 {
		t.Errorf("after reprocess: %+v", back)
	}
	if got := c.do("POST", "/subscriptions/s/leases", `{"ids":["`+id+`"],"ack_deadline_seconds":0}`, 200, count); got != `{"count":1}` {
		t.Errorf("give back: %s", got)
	}
	if back := c.consume("s"); len(back) != 1 || back[0].DeliveryAttempts != 1 {
		t.Errorf("after it was given back: %+v", back)
	}
	c.do("POST", "/subscriptions/s/acks", `["`+id+`","`+msgs[1].ID+`"]`, 204, nil)
	want = map[string]float64{"available": 0, "delivered": 0, "acked": 2, "dlq": 0, "delayed": 0}
	if diff := cmp.Diff(want, metrics()); diff != "" {
		t.Errorf("metrics at the end (-want +got):\n%s", diff)
	}
}

// What the original's documentation says about failed messages, for messages that get one chance.
func TestHandlingFailedMessages(t *testing.T) {
	t.Parallel()
	c := serve(t, storetest.New(t))
	isJSON := header{"Content-Type": "application/json"}
	count := header{"Prefer": "return=representation"}
	c.do("POST", "/topics", `{"id": "notifications"}`, 201, isJSON)
	c.do("POST", "/subscriptions", `{"id": "email-sender", "topic_id": "notifications", "max_delivery_attempts": 1}`, 201, isJSON)
	const empty = `{"subscription_id":"email-sender","available":0,"delivered":0,"acked":0,"dlq":0,"delayed":0,"oldest_unacked_age_seconds":0}`
	if got := c.do("GET", "/subscriptions/email-sender/metrics", "", 200, nil); got != empty {
		t.Errorf("metrics before all: %s, want %s", got, empty)
	}
	const payload = "{\"to\" : \"<user@example.com>\",\n \"n\": 12345678901234567890.10}"
	c.do("POST", "/topics/notifications/messages", `{"messages":[{"payload":`+payload+`,"attributes":{"k":"<v>"}}]}`, 204, isJSON)
	msgs := c.consume("email-sender")
	if len(msgs) != 1 || msgs[0].DeliveryAttempts != 1 {
		t.Fatalf("consumed %+v", msgs)
	}
	ids := `["` + msgs[0].ID + `"]`
	c.do("POST", "/subscriptions/email-sender/leases", `{"ids":`+ids+`,"ack_deadline_seconds":0}`, 204, isJSON)
	if again := c.consume("email-sender"); len(again) != 1 || again[0].DeliveryAttempts != 1 {
		t.Fatalf("consumed %+v after the message was given back", again)
	}
	for _, want := range []string{`{"count":1}`, `{"count":0}`} {
		if got := c.do("POST", "/subscriptions/email-sender/nacks", ids, 200, count); got != want {
			t.Errorf("nack: %s, want %s", got, want)
		}
	}
	if msgs := c.consume("email-sender"); len(msgs) != 0 {
		t.Errorf("consumed the dead letter %+v", msgs)
	}

	const dead = `{"subscription_id":"email-sender","available":0,"delivered":0,"acked":0,"dlq":1,"delayed":0,"oldest_unacked_age_seconds":0}`
	if got := c.do("GET", "/subscriptions/email-sender/metrics", "", 200, nil); got != dead {
		t.Errorf("metrics: %s, want %s", got, dead)
	}
	dlq := c.do("GET", "/subscriptions/email-sender/dlq", "", 200, nil)
	start := `{"data":[{"id":"` + msgs[0].ID + `","subscription_id":"email-sender","payload":` + payload +
		`,"delivery_attempts":1,"created_at":"` + msgs[0].CreatedAt + `","attributes":{"k":"<v>"},"last_error":null,"dead_at":"`
	if !strings.HasPrefix(dlq, start) {
		t.Errorf("dead letters: %s, want %s", dlq, start)
	}
	if got := c.do("GET", "/subscriptions/email-sender/dlq?offset=1", "", 200, nil); got != `{"data":[]}` {
		t.Errorf("dead letters after the first: %s", got)
	}
	for _, want := range []string{`{"count":1}`, `{"count":0}`} {
		if got := c.do("POST", "/subscriptions/email-sender/dlq/reprocess", ids, 200, count); got != want {
			t.Errorf("reprocess: %s, want %s", got, want)
		}
	}
	back := c.consume("email-sender")
	if diff := cmp.Diff(msgs, back); diff != "" {
		t.Errorf("reprocessed (-before +after):\n%s", diff)
	}
	c.do("POST", "/subscriptions/email-sender/acks", ids, 204, isJSON)
	done := strings.Replace(empty, `"acked":0`, `"acked":1`, 1)
	if got := c.do("GET", "/subscriptions/email-sender/metrics", "", 200, nil); got != done {
		t.Errorf("metrics at the end: %s, want %s", got, done)
	}
	c.do("POST", "/subscriptions/nobody/nacks", `["x"]`, 422, isJSON)
	for _, path := range []string{"nacks", "dlq/reprocess"} {
		c.do("POST", "/subscriptions/nobody/"+path, `[]`, 404, isJSON)
	}
	for _, path := range []string{"dlq", "metrics"} {
		c.do("GET", "/subscriptions/nobody/"+path, "", 404, nil)
	}
}
