package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

// A broker is a fake. What is nil panics when called, so a test names all that it expects.
type broker struct {
	createTopic        func(string) (fastpubsub.Topic, error)
	getTopic           func(string) (fastpubsub.Topic, error)
	listTopics         func(fastpubsub.ListOptions) ([]fastpubsub.Topic, error)
	deleteTopic        func(string) error
	createSubscription func(fastpubsub.Subscription) (fastpubsub.Subscription, error)
	getSubscription    func(string) (fastpubsub.Subscription, error)
	listSubscriptions  func(fastpubsub.ListOptions) ([]fastpubsub.Subscription, error)
	deleteSubscription func(string) error
	publish            func(string, []fastpubsub.NewMessage) ([]fastpubsub.ID, error)
	consume            func(context.Context, string, fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error)
	ack                func(string, []fastpubsub.ID) (int, error)
	nack               func(string, []fastpubsub.Delivery, fastpubsub.NackOptions) (int, error)
	extend             func(string, []fastpubsub.Delivery, time.Duration) (int, error)
	deadLetters        func(string, fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error)
	reprocess          func(string, []fastpubsub.ID) (int, error)
	metrics            func(string) (fastpubsub.Metrics, error)
	check              func(context.Context) error
}

func (b *broker) CreateTopic(_ context.Context, id string) (fastpubsub.Topic, error) {
	return b.createTopic(id)
}
func (b *broker) GetTopic(_ context.Context, id string) (fastpubsub.Topic, error) {
	return b.getTopic(id)
}
func (b *broker) ListTopics(_ context.Context, o fastpubsub.ListOptions) ([]fastpubsub.Topic, error) {
	return b.listTopics(o)
}
func (b *broker) DeleteTopic(_ context.Context, id string) error { return b.deleteTopic(id) }
func (b *broker) CreateSubscription(_ context.Context, s fastpubsub.Subscription) (fastpubsub.Subscription, error) {
	return b.createSubscription(s)
}
func (b *broker) GetSubscription(_ context.Context, id string) (fastpubsub.Subscription, error) {
	return b.getSubscription(id)
}
func (b *broker) ListSubscriptions(_ context.Context, o fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) {
	return b.listSubscriptions(o)
}
func (b *broker) DeleteSubscription(_ context.Context, id string) error {
	return b.deleteSubscription(id)
}
func (b *broker) Publish(_ context.Context, id string, msgs ...fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
	return b.publish(id, msgs)
}
func (b *broker) Consume(ctx context.Context, id string, o fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
	return b.consume(ctx, id, o)
}
func (b *broker) Ack(_ context.Context, id string, ids []fastpubsub.ID) (int, error) {
	return b.ack(id, ids)
}
func (b *broker) Nack(_ context.Context, id string, ds []fastpubsub.Delivery, o fastpubsub.NackOptions) (int, error) {
	return b.nack(id, ds, o)
}
func (b *broker) Extend(_ context.Context, id string, ds []fastpubsub.Delivery, d time.Duration) (int, error) {
	return b.extend(id, ds, d)
}
func (b *broker) DeadLetters(_ context.Context, id string, o fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error) {
	return b.deadLetters(id, o)
}
func (b *broker) Reprocess(_ context.Context, id string, ids []fastpubsub.ID) (int, error) {
	return b.reprocess(id, ids)
}
func (b *broker) Metrics(_ context.Context, id string) (fastpubsub.Metrics, error) {
	return b.metrics(id)
}
func (b *broker) Check(ctx context.Context) error { return b.check(ctx) }

var (
	created = time.Date(2025, 12, 29, 15, 30, 0, 0, time.UTC)
	topicT  = fastpubsub.Topic{ID: "t", CreatedAt: created}
	subS    = fastpubsub.Subscription{
		ID: "s", TopicID: "t", CreatedAt: created,
		SubscriptionSettings: fastpubsub.SubscriptionSettings{
			MaxDeliveryAttempts: 5, BackoffMin: 5 * time.Second, BackoffMax: 300 * time.Second, AckDeadline: time.Minute,
		},
	}
	message1 = mustID("550e8400-e29b-81d4-a716-446655440000")
)

const (
	wireT = `{"id":"t","created_at":"2025-12-29T15:30:00Z"}`
	wireS = `{"id":"s","topic_id":"t","filter":null,"max_delivery_attempts":5,"backoff_min_seconds":5,"backoff_max_seconds":300,"ack_deadline_seconds":60,"created_at":"2025-12-29T15:30:00Z"}`
)

func mustID(s string) fastpubsub.ID {
	id, err := fastpubsub.ParseID(s)
	if err != nil {
		panic(err)
	}
	return id
}

// working is a broker with topic t, subscription s and one message.
func working() *broker {
	knows := func(id, known string) error {
		if id != known {
			return fmt.Errorf("%q: %w", id, fastpubsub.ErrNotFound)
		}
		return nil
	}
	return &broker{
		createTopic: func(id string) (fastpubsub.Topic, error) {
			if id == "taken" {
				return fastpubsub.Topic{}, fmt.Errorf("create: %w", fastpubsub.ErrExists)
			}
			return fastpubsub.Topic{ID: id, CreatedAt: created}, nil
		},
		getTopic:    func(id string) (fastpubsub.Topic, error) { return topicT, knows(id, "t") },
		listTopics:  func(fastpubsub.ListOptions) ([]fastpubsub.Topic, error) { return []fastpubsub.Topic{topicT}, nil },
		deleteTopic: func(id string) error { return knows(id, "t") },
		createSubscription: func(s fastpubsub.Subscription) (fastpubsub.Subscription, error) {
			if s.ID == "taken" {
				return s, fmt.Errorf("create: %w", fastpubsub.ErrExists)
			}
			full := subS
			full.ID, full.Filter = s.ID, s.Filter
			return full, knows(s.TopicID, "t")
		},
		getSubscription: func(id string) (fastpubsub.Subscription, error) { return subS, knows(id, "s") },
		listSubscriptions: func(fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) {
			return nil, nil
		},
		deleteSubscription: func(id string) error { return knows(id, "s") },
		publish: func(id string, msgs []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
			return []fastpubsub.ID{message1}, knows(id, "t")
		},
		consume: func(_ context.Context, id string, _ fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
			return []fastpubsub.Message{{
				Delivery: fastpubsub.Delivery{ID: message1, DeliveryAttempts: 1}, SubscriptionID: "s", Payload: json.RawMessage(`{"a" : 1.0}`), CreatedAt: created,
			}}, knows(id, "s")
		},
		ack: func(id string, ids []fastpubsub.ID) (int, error) { return len(ids), knows(id, "s") },
		nack: func(id string, ds []fastpubsub.Delivery, _ fastpubsub.NackOptions) (int, error) {
			return len(ds), knows(id, "s")
		},
		extend: func(id string, ds []fastpubsub.Delivery, _ time.Duration) (int, error) {
			return len(ds), knows(id, "s")
		},
		deadLetters: func(id string, _ fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error) {
			m := fastpubsub.Message{Delivery: fastpubsub.Delivery{ID: message1, DeliveryAttempts: 5}, SubscriptionID: "s",
				Payload: json.RawMessage(`{"a" : 1.0}`), CreatedAt: created}
			explained := m
			explained.Attributes = map[string]string{"k": "v"}
			return []fastpubsub.DeadLetter{{Message: m, DeadAt: created}, {Message: explained, DeadAt: created, LastError: "a \"<b>\""}}, knows(id, "s")
		},
		reprocess: func(id string, ids []fastpubsub.ID) (int, error) { return len(ids), knows(id, "s") },
		metrics: func(id string) (fastpubsub.Metrics, error) {
			return fastpubsub.Metrics{Available: 150, Delayed: 3, Delivered: 25, Acked: 1000, DeadLetters: 5,
				OldestUnackedAge: 1500 * time.Millisecond}, knows(id, "s")
		},
		check: func(context.Context) error { return nil },
	}
}

var silent = slog.New(slog.DiscardHandler)

type header map[string]string

func do(h http.Handler, method, target, body string, headers header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://api"+target, strings.NewReader(body))
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// problem is the body of a 422 with one problem.
func problem(kind, loc, msg string) string {
	return fmt.Sprintf(`{"detail":[{"type":"%s","loc":[%s],"msg":"%s"}]}`, kind, loc, msg)
}

const (
	noTopic        = `{"detail":"Topic not found"}`
	noSubscription = `{"detail":"Subscription not found"}`
	messagesOfS    = `{"data":[{"id":"550e8400-e29b-81d4-a716-446655440000","subscription_id":"s","payload":{"a" : 1.0},"delivery_attempts":1,"created_at":"2025-12-29T15:30:00Z"}]}`
	anID           = `"550e8400-e29b-81d4-a716-446655440000"`
	deadOfS        = `{"data":[{"id":` + anID + `,"subscription_id":"s","payload":{"a" : 1.0},"delivery_attempts":5,"created_at":"2025-12-29T15:30:00Z","last_error":null,"dead_at":"2025-12-29T15:30:00Z"},` +
		`{"id":` + anID + `,"subscription_id":"s","payload":{"a" : 1.0},"delivery_attempts":5,"created_at":"2025-12-29T15:30:00Z","attributes":{"k":"v"},"last_error":"a \"<b>\"","dead_at":"2025-12-29T15:30:00Z"}]}`
)

// Every route, what it answers, and every way in which a request can be refused before the broker is asked.
func TestRoutes(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat(`{"a":`, 130) + "1" + strings.Repeat("}", 130)
	long := strings.Repeat("x", 129)
	representation := header{"Prefer": "return=representation"}

	for _, test := range []struct {
		reason, method, target, body string
		headers                      header
		status                       int
		want                         string
	}{
		{"create topic", "POST", "/topics", `{"id":"t"}`, nil, 201, wireT},
		{"JSON with a charset", "POST", "/topics", `{"id":"t"}`, header{"Content-Type": "application/json; charset=utf-8"}, 201, wireT},
		{"unknown fields", "POST", "/topics", ` {"x":[{}],"id":"t"} `, nil, 201, wireT},
		{"the last of two", "POST", "/topics", `{"id":5,"id":"t"}`, nil, 201, wireT},
		{"escapes", "POST", "/topics", `{"\u0069d":"\u0074"}`, nil, 201, wireT},
		{"keys have their case", "POST", "/topics", `{"ID":"t"}`, nil, 422, problem("missing", `"body","id"`, "must not be missing")},
		{"taken", "POST", "/topics", `{"id":"taken"}`, nil, 409, `{"detail":"This topic already exists"}`},
		{"id null", "POST", "/topics", `{"id":null}`, nil, 422, problem("string_type", `"body","id"`, "must be a string")},
		{"id number", "POST", "/topics", `{"id":1}`, nil, 422, problem("string_type", `"body","id"`, "must be a string")},
		{"id empty", "POST", "/topics", `{"id":""}`, nil, 422, problem("string_too_short", `"body","id"`, "must have at least 1 character")},
		{"id long", "POST", "/topics", `{"id":"` + long + `"}`, nil, 422, problem("string_too_long", `"body","id"`, "must have at most 128 characters, not 129")},
		{"id pattern", "POST", "/topics", `{"id":"a/b"}`, nil, 422, problem("string_pattern_mismatch", `"body","id"`, "must match ^[a-zA-Z0-9._-]+$")},
		{"id newline", "POST", "/topics", `{"id":"a\n"}`, nil, 422, problem("string_pattern_mismatch", `"body","id"`, "must match ^[a-zA-Z0-9._-]+$")},
		{"id dots", "POST", "/topics", `{"id":".."}`, nil, 422, problem("value_error", `"body","id"`, `must be neither \".\" nor \"..\"`)},
		{"empty body", "POST", "/topics", ``, nil, 422, problem("missing", `"body"`, "must not be empty")},
		{"white space", "POST", "/topics", " \n", nil, 422, problem("missing", `"body"`, "must not be empty")},
		{"a list", "POST", "/topics", `[]`, nil, 422, problem("model_attributes_type", `"body"`, "must be an object")},
		{"not JSON", "POST", "/topics", `{"id":"t"`, nil, 422, problem("json_invalid", `"body",9`, "must be JSON: unexpected end")},
		{"not an object, not JSON", "POST", "/topics", `x`, nil, 422, problem("json_invalid", `"body",1`, "must be JSON: invalid character 'x' looking for beginning of value")},
		{"two values", "POST", "/topics", `{"id":"t"}{}`, nil, 422, problem("json_invalid", `"body",10`, "must be JSON: text after the object")},
		{"bad UTF-8", "POST", "/topics", "{\"id\":\"\xff\"}", nil, 422, problem("json_invalid", `"body",7`, "must be JSON: invalid UTF-8")},
		{"deep", "POST", "/topics", deep, nil, 422, problem("json_invalid", `"body",640`, "must be JSON: depth over 128")},
		{"NUL", "POST", "/topics", `{"id":"\u0000"}`, nil, 422, problem("json_invalid", `"body",7`, `must be JSON: \\u0000`)},
		{"form", "POST", "/topics", `id=t`, header{"Content-Type": "application/x-www-form-urlencoded"}, 415, `{"detail":"The Content-Type must be application/json"}`},
		{"nonsense type", "POST", "/topics", `{"id":"t"}`, header{"Content-Type": ";"}, 415, `{"detail":"The Content-Type must be application/json"}`},
		{"gzip", "POST", "/topics", `{"id":"t"}`, header{"Content-Encoding": "gzip"}, 415, `{"detail":"The body must have no Content-Encoding"}`},
		{"too large", "POST", "/topics", `{"id":"` + strings.Repeat("x", 2000) + `"}`, nil, 413, `{"detail":"The body must have at most 1000 bytes"}`},

		{"list topics", "GET", "/topics?offset=0&limit=10", "", nil, 200, `{"data":[` + wireT + `]}`},
		{"HEAD", "HEAD", "/topics", "", nil, 200, `{"data":[` + wireT + `]}`}, // net/http leaves out the body
		{"bad offset and limit", "GET", "/topics?limit=101&offset=-1", "", nil, 422,
			`{"detail":[{"type":"greater_than_equal","loc":["query","offset"],"msg":"must be at least 0"},{"type":"less_than_equal","loc":["query","limit"],"msg":"must be at most 100"}]}`},
		{"limit 0", "GET", "/topics?limit=0", "", nil, 422, problem("greater_than_equal", `"query","limit"`, "must be at least 1")},
		{"limit word", "GET", "/topics?limit=ten", "", nil, 422, problem("int_parsing", `"query","limit"`, "must be an integer")},
		{"limit empty", "GET", "/topics?limit=", "", nil, 422, problem("int_parsing", `"query","limit"`, "must be an integer")},
		{"limit fraction", "GET", "/topics?limit=5.0", "", nil, 422, problem("int_parsing", `"query","limit"`, "must be an integer")},
		{"huge offset", "GET", "/topics?offset=99999999999999999999", "", nil, 422, problem("less_than_equal", `"query","offset"`, "must be at most 9223372036854775807")},
		{"huge limit", "GET", "/topics?limit=99999999999999999999", "", nil, 422, problem("less_than_equal", `"query","limit"`, "must be at most 100")},
		{"bad query", "GET", "/topics?limit=%zz", "", nil, 422, problem("value_error", `"query"`, "must be URL-encoded")},
		{"get topic", "GET", "/topics/t", "", nil, 200, wireT},
		{"escaped id", "GET", "/topics/%74", "", nil, 200, wireT},
		{"no topic", "GET", "/topics/x", "", nil, 404, noTopic},
		{"delete topic", "DELETE", "/topics/t", "", nil, 204, ""},
		{"delete no topic", "DELETE", "/topics/x", "", nil, 404, noTopic},
		{"id not UTF-8", "DELETE", "/topics/%ff", "", nil, 404, noTopic},
		{"id NUL", "GET", "/topics/%00", "", nil, 404, noTopic},
		{"dots", "GET", "/topics/..", "", nil, 404, noTopic},
		{"dots further on", "GET", "/topics/../liveness", "", nil, 404, `{"detail":"Not Found"}`},
		{"escaped slash", "POST", "/topics/t%2fmessages", `[{}]`, nil, 404, `{"detail":"Not Found"}`},
		{"trailing slash", "GET", "/topics/", "", nil, 404, `{"detail":"Not Found"}`},
		{"two slashes", "GET", "//topics", "", nil, 404, `{"detail":"Not Found"}`},
		{"no route", "GET", "/", "", nil, 404, `{"detail":"Not Found"}`},
		{"no such case", "GET", "/Topics", "", nil, 404, `{"detail":"Not Found"}`},

		{"publish", "POST", "/topics/t/messages", `[{"a":1}]`, nil, 204, ""},
		{"publish, ids", "POST", "/topics/t/messages", `[{"a":1}]`, representation, 201, `{"ids":[` + anID + `]}`},
		{"publish nothing", "POST", "/topics/t/messages", ` [ ] `, nil, 204, ""},
		{"publish nothing, ids", "POST", "/topics/t/messages", `[]`, representation, 201, `{"ids":[]}`},
		{"publish nothing nowhere", "POST", "/topics/x/messages", `[]`, nil, 404, noTopic},
		{"publish nowhere", "POST", "/topics/x/messages", `[{}]`, nil, 404, noTopic},
		{"validation before existence", "POST", "/topics/x/messages", `5`, nil, 422, problem("list_type", `"body"`, "must be a list")},
		{"publish junk", "POST", "/topics/t/messages", `[{}`, nil, 422, problem("json_invalid", `"body",3`, "must be JSON: unexpected end")},
		{"publish two lists", "POST", "/topics/t/messages", `[{}] []`, nil, 422, problem("json_invalid", `"body",5`, "must be JSON: text after the array")},
		{"publish trailing comma", "POST", "/topics/t/messages", `[{},]`, nil, 422, problem("json_invalid", `"body",4`, "must be JSON: unexpected character")},
		{"publish only commas", "POST", "/topics/t/messages", `[,]`, nil, 422, problem("json_invalid", `"body",1`, "must be JSON: unexpected character")},
		{"publish no comma", "POST", "/topics/t/messages", `[{}{}]`, nil, 422, problem("json_invalid", `"body",3`, "must be JSON: unexpected character")},
		{"publish unclosed string", "POST", "/topics/t/messages", `["\`, nil, 422, problem("json_invalid", `"body",3`, "must be JSON: unexpected end")},
		{"publish many", "POST", "/topics/t/messages", `[{},{},{},{}]`, nil, 422, problem("too_long", `"body"`, "must have at most 3 items, not 4")},
		{"messages", "POST", "/topics/t/messages", `{"messages":[{"payload":{},"attributes":{"k":"v"}}]}`, nil, 204, ""},
		{"no messages", "POST", "/topics/t/messages", `{"messages":[]}`, nil, 204, ""},
		{"messages missing", "POST", "/topics/t/messages", `{}`, nil, 422, problem("missing", `"body","messages"`, "must not be missing")},
		{"messages null", "POST", "/topics/t/messages", `{"messages":null}`, nil, 422, problem("list_type", `"body","messages"`, "must be a list")},
		{"many messages", "POST", "/topics/t/messages", `{"messages":[{},{},{},{}]}`, nil, 422, problem("too_long", `"body","messages"`, "must have at most 3 items, not 4")},
		{"messages junk", "POST", "/topics/t/messages", `{"messages":[}`, nil, 422, problem("json_invalid", `"body",14`, "must be JSON: invalid character '}' looking for beginning of value")},
		{"all that is wrong with messages", "POST", "/topics/t/messages", `{"messages":[1,{"attributes":{"k":1}},{"payload":[],"attributes":[]}]}`, nil, 422, `{"detail":[` +
			`{"type":"model_attributes_type","loc":["body","messages",0],"msg":"must be an object"},` +
			`{"type":"missing","loc":["body","messages",1,"payload"],"msg":"must not be missing"},` +
			`{"type":"string_type","loc":["body","messages",1,"attributes","k"],"msg":"must be a string"},` +
			`{"type":"dict_type","loc":["body","messages",2,"payload"],"msg":"not an object at offset 0"},` +
			`{"type":"dict_type","loc":["body","messages",2,"attributes"],"msg":"not an object at offset 0"}]}`},
		{"attributes with a lone surrogate", "POST", "/topics/t/messages", `{"messages":[{"payload":{},"attributes":{"k":"\ud800"}}]}`, nil, 422,
			problem("json_invalid", `"body","messages",0,"attributes"`, "lone surrogate at offset 6")},

		{"create subscription", "POST", "/subscriptions", `{"id":"s","topic_id":"t"}`, nil, 201, wireS},
		{"all settings", "POST", "/subscriptions", `{"id":"s","topic_id":"t","filter":{"c":["<&>"]},"max_delivery_attempts":5.0,"backoff_min_seconds":5,"backoff_max_seconds":3e2,"ack_deadline_seconds":60}`, nil, 201,
			strings.Replace(wireS, `"filter":null`, `"filter":{"c":["<&>"]}`, 1)},
		{"settings null", "POST", "/subscriptions", `{"id":"s","topic_id":"t","filter":null,"backoff_min_seconds":null}`, nil, 201, wireS},
		{"empty filter", "POST", "/subscriptions", `{"id":"s","topic_id":"t","filter":{}}`, nil, 201, strings.Replace(wireS, `"filter":null`, `"filter":{}`, 1)},
		{"subscription taken", "POST", "/subscriptions", `{"id":"taken","topic_id":"x"}`, nil, 409, `{"detail":"This subscription already exists"}`},
		{"subscription to nothing", "POST", "/subscriptions", `{"id":"s","topic_id":"x"}`, nil, 404, noTopic},
		{"all that is wrong with a subscription", "POST", "/subscriptions",
			`{"ack_deadline_seconds":43201,"backoff_max_seconds":true,"backoff_min_seconds":"5","max_delivery_attempts":1.5,"filter":{"a.0":[],"b.c":[1,null]},"topic_id":"!"}`, nil, 422, `{"detail":[` +
				`{"type":"missing","loc":["body","id"],"msg":"must not be missing"},` +
				`{"type":"string_pattern_mismatch","loc":["body","topic_id"],"msg":"must match ^[a-zA-Z0-9._-]+$"},` +
				`{"type":"too_short","loc":["body","filter","a.0"],"msg":"must have at least 1 value"},` +
				`{"type":"value_error","loc":["body","filter","b.c",1],"msg":"must be a string, number or boolean"},` +
				`{"type":"int_from_float","loc":["body","max_delivery_attempts"],"msg":"must be an integer, without a fraction"},` +
				`{"type":"int_type","loc":["body","backoff_min_seconds"],"msg":"must be an integer"},` +
				`{"type":"int_type","loc":["body","backoff_max_seconds"],"msg":"must be an integer"},` +
				`{"type":"less_than_equal","loc":["body","ack_deadline_seconds"],"msg":"must be at most 43200"}]}`},
		{"filter list", "POST", "/subscriptions", `{"id":"s","topic_id":"t","filter":[]}`, nil, 422, problem("dict_type", `"body","filter"`, "must be an object or null")},
		{"zero", "POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":0}`, nil, 422, problem("greater_than_equal", `"body","max_delivery_attempts"`, "must be at least 1")},
		{"huge", "POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":99999999999999999999}`, nil, 422, problem("less_than_equal", `"body","max_delivery_attempts"`, "must be at most 2147483647")},
		{"huger", "POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":1e9999}`, nil, 422, problem("less_than_equal", `"body","max_delivery_attempts"`, "must be at most 2147483647")},
		{"hugely negative", "POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":-1e40}`, nil, 422, problem("greater_than_equal", `"body","max_delivery_attempts"`, "must be at least 1")},
		{"a tiny fraction", "POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":5.00000000000000000001}`, nil, 422, problem("int_from_float", `"body","max_delivery_attempts"`, "must be an integer, without a fraction")},
		{"list subscriptions", "GET", "/subscriptions", "", nil, 200, `{"data":[]}`},
		{"list no subscriptions", "GET", "/subscriptions?limit=x", "", nil, 422, problem("int_parsing", `"query","limit"`, "must be an integer")},
		{"get subscription", "GET", "/subscriptions/s", "", nil, 200, wireS},
		{"no subscription", "GET", "/subscriptions/x", "", nil, 404, noSubscription},
		{"delete subscription", "DELETE", "/subscriptions/s", "", nil, 204, ""},
		{"delete no subscription", "DELETE", "/subscriptions/%20", "", nil, 404, noSubscription},

		{"consume", "GET", "/subscriptions/s/messages?consumer_id=w&batch_size=100&wait_seconds=30&ack_deadline_seconds=1", "", nil, 200, messagesOfS},
		{"consume from nothing", "GET", "/subscriptions/x/messages?consumer_id=w", "", nil, 404, noSubscription},
		{"no consumer", "GET", "/subscriptions/x/messages", "", nil, 422, problem("missing", `"query","consumer_id"`, "must not be missing")},
		{"bad consumer", "GET", "/subscriptions/x/messages?consumer_id=%ff", "", nil, 422, problem("value_error", `"query","consumer_id"`, "must be UTF-8 without NUL")},
		{"all that is wrong with consume", "GET", "/subscriptions/s/messages?consumer_id=&batch_size=101&wait_seconds=31&ack_deadline_seconds=0", "", nil, 422, `{"detail":[` +
			`{"type":"string_too_short","loc":["query","consumer_id"],"msg":"must have at least 1 character"},` +
			`{"type":"less_than_equal","loc":["query","batch_size"],"msg":"must be at most 100"},` +
			`{"type":"less_than_equal","loc":["query","wait_seconds"],"msg":"must be at most 30"},` +
			`{"type":"greater_than_equal","loc":["query","ack_deadline_seconds"],"msg":"must be at least 1"}]}`},
		{"HEAD would take messages", "HEAD", "/subscriptions/s/messages?consumer_id=w", "", nil, 405, `{"detail":"Method Not Allowed"}`},

		{"ack", "POST", "/subscriptions/s/acks", `[` + anID + `]`, nil, 204, ""},
		{"ack, count", "POST", "/subscriptions/s/acks", `[` + anID + `]`, header{"Prefer": `wait=1, Return="representation"; x=y`}, 200, `{"count":1}`},
		{"ack, minimal", "POST", "/subscriptions/s/acks", `[` + anID + `]`, header{"Prefer": "return=minimal"}, 204, ""},
		{"ack nothing", "POST", "/subscriptions/s/acks", `[]`, representation, 200, `{"count":0}`},
		{"ack forms of UUIDs", "POST", "/subscriptions/s/acks", `["550E8400E29B81D4A716446655440000","{550e8400-e29b-81d4-a716-446655440000}","\u0035\u0035\u0030e8400-e29b-81d4-a716-446655440000"]`, representation, 200, `{"count":3}`},
		{"ack on nothing", "POST", "/subscriptions/x/acks", `[]`, nil, 404, noSubscription},
		{"ack junk", "POST", "/subscriptions/x/acks", `["a",5,{},` + anID + `]`, nil, 422, `{"detail":[` +
			`{"type":"uuid_parsing","loc":["body",0],"msg":"must be a UUID"},` +
			`{"type":"uuid_type","loc":["body",1],"msg":"must be a string with a UUID"},` +
			`{"type":"uuid_type","loc":["body",2],"msg":"must be a string with a UUID"}]}`},
		{"ack what is no JSON", "POST", "/subscriptions/s/acks", `["a",x]`, nil, 422, problem("json_invalid", `"body",6`, "must be JSON: invalid character 'x' looking for beginning of value")},
		{"ack digits in anything", "POST", "/subscriptions/s/acks", "[\"\x01550e8400-e29b-81d4-a716-446655440000\x01\"]", nil, 422, problem("json_invalid", `"body",3`, `must be JSON: invalid character '\\x01' in string literal`)},
		{"ack many", "POST", "/subscriptions/s/acks", `[1,1,1,1,1]`, nil, 422, problem("too_long", `"body"`, "must have at most 4 items, not 5")},
		{"ack object", "POST", "/subscriptions/s/acks", `{"ids":[]}`, nil, 422, problem("list_type", `"body"`, "must be a list")},

		{"nack", "POST", "/subscriptions/s/nacks", `[` + anID + `]`, nil, 204, ""},
		{"nack, count", "POST", "/subscriptions/s/nacks", `[` + anID + `,` + anID + `]`, representation, 200, `{"count":2}`},
		{"nack nothing", "POST", "/subscriptions/s/nacks", `[]`, nil, 204, ""},
		{"nack on nothing", "POST", "/subscriptions/x/nacks", `[]`, nil, 404, noSubscription},
		{"nack with a delay", "POST", "/subscriptions/s/nacks", ` {"ids":[` + anID + `],"delay_seconds":31622400}`, representation, 200, `{"count":1}`},
		{"nack, delay null", "POST", "/subscriptions/s/nacks", `{"ids":[` + anID + `],"delay_seconds":null}`, nil, 204, ""},
		{"nack junk", "POST", "/subscriptions/x/nacks", `["a"]`, nil, 422, problem("uuid_parsing", `"body",0`, "must be a UUID")},
		{"all that is wrong with nack", "POST", "/subscriptions/x/nacks", `{"delay_seconds":-1,"ids":["a",5,` + anID + `]}`, nil, 422, `{"detail":[` +
			`{"type":"uuid_parsing","loc":["body","ids",0],"msg":"must be a UUID"},` +
			`{"type":"uuid_type","loc":["body","ids",1],"msg":"must be a string with a UUID"},` +
			`{"type":"greater_than_equal","loc":["body","delay_seconds"],"msg":"must be at least 0"}]}`},
		{"nack for long", "POST", "/subscriptions/s/nacks", `{"ids":[],"delay_seconds":31622401}`, nil, 422, problem("less_than_equal", `"body","delay_seconds"`, "must be at most 31622400")},
		{"nack without ids", "POST", "/subscriptions/s/nacks", `{}`, nil, 422, problem("missing", `"body","ids"`, "must not be missing")},
		{"nack, ids null", "POST", "/subscriptions/s/nacks", `{"ids":null}`, nil, 422, problem("list_type", `"body","ids"`, "must be a list")},
		{"nack many", "POST", "/subscriptions/s/nacks", `{"ids":[1,1,1,1,1]}`, nil, 422, problem("too_long", `"body","ids"`, "must have at most 4 items, not 5")},
		{"nack many in a list", "POST", "/subscriptions/s/nacks", `[1,1,1,1,1]`, nil, 422, problem("too_long", `"body"`, "must have at most 4 items, not 5")},
		{"nack, delay fraction", "POST", "/subscriptions/s/nacks", `{"ids":[],"delay_seconds":0.5}`, nil, 422, problem("int_from_float", `"body","delay_seconds"`, "must be an integer, without a fraction")},
		{"nack, delay word", "POST", "/subscriptions/s/nacks", `{"ids":[],"delay_seconds":"5"}`, nil, 422, problem("int_type", `"body","delay_seconds"`, "must be an integer")},
		{"nack what is no JSON", "POST", "/subscriptions/s/nacks", `{"ids":[x]}`, nil, 422, problem("json_invalid", `"body",8`, "must be JSON: unexpected character")},
		{"nack form", "POST", "/subscriptions/s/nacks", `ids=1`, header{"Content-Type": "application/x-www-form-urlencoded"}, 415, `{"detail":"The Content-Type must be application/json"}`},
		{"nack too large", "POST", "/subscriptions/s/nacks", `["` + strings.Repeat("x", 2000) + `"]`, nil, 413, `{"detail":"The body must have at most 1000 bytes"}`},
		{"nack an empty body", "POST", "/subscriptions/s/nacks", ``, nil, 422, problem("missing", `"body"`, "must not be empty")},
		{"nack, id not UTF-8", "POST", "/subscriptions/%ff/nacks", `[]`, nil, 404, noSubscription},
		{"nack a number", "POST", "/subscriptions/s/nacks", `5`, nil, 422, problem("list_type", `"body"`, "must be a list")},

		{"extend", "POST", "/subscriptions/s/leases", `{"ids":[` + anID + `],"ack_deadline_seconds":43200}`, nil, 204, ""},
		{"give back, count", "POST", "/subscriptions/s/leases", `{"ids":[` + anID + `],"ack_deadline_seconds":0}`, representation, 200, `{"count":1}`},
		{"extend on nothing", "POST", "/subscriptions/x/leases", `{"ids":[],"ack_deadline_seconds":1}`, nil, 404, noSubscription},
		{"all that is wrong with extend", "POST", "/subscriptions/x/leases", `{}`, nil, 422, `{"detail":[` +
			`{"type":"missing","loc":["body","ids"],"msg":"must not be missing"},` +
			`{"type":"missing","loc":["body","ack_deadline_seconds"],"msg":"must not be missing"}]}`},
		{"extend, null", "POST", "/subscriptions/s/leases", `{"ids":[],"ack_deadline_seconds":null}`, nil, 422, problem("int_type", `"body","ack_deadline_seconds"`, "must be an integer")},
		{"extend for long", "POST", "/subscriptions/s/leases", `{"ids":[],"ack_deadline_seconds":43201}`, nil, 422, problem("less_than_equal", `"body","ack_deadline_seconds"`, "must be at most 43200")},
		{"extend, negative", "POST", "/subscriptions/s/leases", `{"ids":[],"ack_deadline_seconds":-1}`, nil, 422, problem("greater_than_equal", `"body","ack_deadline_seconds"`, "must be at least 0")},
		{"extend, true", "POST", "/subscriptions/s/leases", `{"ids":[],"ack_deadline_seconds":true}`, nil, 422, problem("int_type", `"body","ack_deadline_seconds"`, "must be an integer")},
		{"extend many for long", "POST", "/subscriptions/s/leases", `{"ack_deadline_seconds":43201,"ids":[1,1,1,1,1]}`, nil, 422, `{"detail":[` +
			`{"type":"too_long","loc":["body","ids"],"msg":"must have at most 4 items, not 5"},` +
			`{"type":"less_than_equal","loc":["body","ack_deadline_seconds"],"msg":"must be at most 43200"}]}`},
		{"extend an empty body", "POST", "/subscriptions/s/leases", ` `, nil, 422, problem("missing", `"body"`, "must not be empty")},
		{"extend what is no JSON", "POST", "/subscriptions/s/leases", `ids`, nil, 422, problem("json_invalid", `"body",1`, "must be JSON: invalid character 'i' looking for beginning of value")},
		{"extend nothing", "POST", "/subscriptions/s/leases", `{"ids":[],"ack_deadline_seconds":1}`, representation, 200, `{"count":0}`},
		{"extend, id NUL", "POST", "/subscriptions/%00/leases", `{"ids":[],"ack_deadline_seconds":1}`, nil, 404, noSubscription},
		{"extend a list", "POST", "/subscriptions/s/leases", `[]`, nil, 422, problem("model_attributes_type", `"body"`, "must be an object")},

		{"dead letters", "GET", "/subscriptions/s/dlq?offset=0&limit=100", "", nil, 200, deadOfS},
		{"dead letters of nothing", "GET", "/subscriptions/x/dlq", "", nil, 404, noSubscription},
		{"dead letters, limit", "GET", "/subscriptions/x/dlq?limit=101", "", nil, 422, problem("less_than_equal", `"query","limit"`, "must be at most 100")},
		{"all that is wrong with dead letters", "GET", "/subscriptions/x/dlq?limit=0&offset=-1", "", nil, 422, `{"detail":[` +
			`{"type":"greater_than_equal","loc":["query","offset"],"msg":"must be at least 0"},` +
			`{"type":"greater_than_equal","loc":["query","limit"],"msg":"must be at least 1"}]}`},
		{"dead letters, id not UTF-8", "GET", "/subscriptions/%ff/dlq", "", nil, 404, noSubscription},
		{"HEAD of dead letters", "HEAD", "/subscriptions/s/dlq", "", nil, 200, deadOfS},
		{"reprocess", "POST", "/subscriptions/s/dlq/reprocess", `[` + anID + `]`, nil, 204, ""},
		{"reprocess, count", "POST", "/subscriptions/s/dlq/reprocess", `[` + anID + `]`, representation, 200, `{"count":1}`},
		{"reprocess on nothing", "POST", "/subscriptions/x/dlq/reprocess", `[]`, nil, 404, noSubscription},
		{"reprocess junk", "POST", "/subscriptions/s/dlq/reprocess", `{"ids":[]}`, nil, 422, problem("list_type", `"body"`, "must be a list")},
		{"reprocess nothing", "POST", "/subscriptions/s/dlq/reprocess", `[]`, representation, 200, `{"count":0}`},
		{"reprocess what is no id", "POST", "/subscriptions/x/dlq/reprocess", `[5,"a"]`, nil, 422, `{"detail":[` +
			`{"type":"uuid_type","loc":["body",0],"msg":"must be a string with a UUID"},` +
			`{"type":"uuid_parsing","loc":["body",1],"msg":"must be a UUID"}]}`},
		{"reprocess many", "POST", "/subscriptions/s/dlq/reprocess", `[1,1,1,1,1]`, nil, 422, problem("too_long", `"body"`, "must have at most 4 items, not 5")},
		{"reprocess what is no JSON", "POST", "/subscriptions/s/dlq/reprocess", `[`, nil, 422, problem("json_invalid", `"body",1`, "must be JSON: unexpected end")},
		{"metrics", "GET", "/subscriptions/s/metrics", "", nil, 200,
			`{"subscription_id":"s","available":150,"delivered":25,"acked":1000,"dlq":5,"delayed":3,"oldest_unacked_age_seconds":1.5}`},
		{"metrics, id not UTF-8", "GET", "/subscriptions/%ff/metrics", "", nil, 404, noSubscription},
		{"metrics of nothing", "GET", "/subscriptions/x/metrics", "", nil, 404, noSubscription},

		{"liveness", "GET", "/liveness", "", nil, 200, `{"status":"alive"}`},
		{"readiness", "GET", "/readiness", "", nil, 200, `{"status":"ready"}`},
	} {
		t.Run(test.reason, func(t *testing.T) {
			t.Parallel()
			api := httpapi.New(working(), httpapi.Config{Logger: silent, MaxBodyBytes: 1000, PublishMaxMessages: 3, AckMaxIDs: 4})
			w := do(api, test.method, test.target, test.body, test.headers)
			if w.Code != test.status {
				t.Errorf("status %d, want %d", w.Code, test.status)
			}
			if diff := cmp.Diff(test.want, w.Body.String()); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if w.Header().Get("X-Request-ID") == "" {
				t.Error("no X-Request-ID")
			}
			if want := "application/json"; test.want != "" && w.Header().Get("Content-Type") != want {
				t.Errorf("Content-Type %q, want %q", w.Header().Get("Content-Type"), want)
			}
		})
	}
}

func TestAllow(t *testing.T) {
	t.Parallel()
	api := httpapi.New(working(), httpapi.Config{Logger: silent})
	for target, want := range map[string]string{
		"/topics":                        "GET, HEAD, OPTIONS, POST",
		"/topics/t":                      "DELETE, GET, HEAD, OPTIONS",
		"/topics/t/messages":             "OPTIONS, POST",
		"/subscriptions":                 "GET, HEAD, OPTIONS, POST",
		"/subscriptions/s":               "DELETE, GET, HEAD, OPTIONS",
		"/subscriptions/s/messages":      "GET, OPTIONS",
		"/subscriptions/s/acks":          "OPTIONS, POST",
		"/subscriptions/s/nacks":         "OPTIONS, POST",
		"/subscriptions/s/leases":        "OPTIONS, POST",
		"/subscriptions/s/dlq":           "GET, HEAD, OPTIONS",
		"/subscriptions/s/metrics":       "GET, HEAD, OPTIONS",
		"/subscriptions/s/dlq/reprocess": "OPTIONS, POST",
		"/liveness":                      "GET, HEAD, OPTIONS",
		"/readiness":                     "GET, HEAD, OPTIONS",
	} {
		w := do(api, "PATCH", target, "", nil)
		if w.Code != 405 || w.Header().Get("Allow") != want || w.Body.String() != `{"detail":"Method Not Allowed"}` {
			t.Errorf("PATCH %s: %d, Allow %q, %s, want 405 and %q", target, w.Code, w.Header().Get("Allow"), w.Body, want)
		}
		w = do(api, "OPTIONS", target, "", nil)
		if w.Code != 204 || w.Header().Get("Allow") != want {
			t.Errorf("OPTIONS %s: %d, Allow %q, want 204 and %q", target, w.Code, w.Header().Get("Allow"), want)
		}
	}
}

// What a broker returns, as clients see it.
func TestBrokerErrors(t *testing.T) {
	t.Parallel()
	const down, internal = `{"detail":"database is down"}`, `{"detail":"Internal Server Error"}`
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	for _, test := range []struct {
		reason string
		err    error
		status int
		want   string
	}{
		{"not found", fastpubsub.ErrNotFound, 404, noTopic},
		{"busy", fastpubsub.ErrBusy, 503, `{"detail":"The topic is busy, try again"}`},
		{"not migrated", errors.Join(fastpubsub.ErrSchemaOutdated, &pgconn.PgError{Code: "42P01"}), 503, `{"detail":"database schema is out of date: run db-migrate"}`},
		{"migrated by a newer release", fastpubsub.ErrBinaryOutdated, 503, `{"detail":"database schema is newer than this server: upgrade the server"}`},
		{"refused", refused, 503, down},
		{"cut off", io.ErrUnexpectedEOF, 503, down},
		{"shut down", &pgconn.PgError{Code: "57P01"}, 503, down},
		{"too many connections", &pgconn.PgError{Code: "53300"}, 503, down},
		{"connection exception", &pgconn.PgError{Code: "08006"}, 503, down},
		{"a bug in SQL", &pgconn.PgError{Code: "42601", Message: "secret"}, 500, internal},
		{"anything", errors.New("secret"), 500, internal},
		{"canceled by the server", context.Canceled, 500, internal},
		{"several fields", &fastpubsub.InvalidError{Problems: []fastpubsub.Problem{
			{Field: "messages", Type: "too_long", Msg: "all"},
			{Field: "messages.1.payload", Type: "dict_type", Msg: "one"},
		}}, 422, `{"detail":[{"type":"too_long","loc":["body"],"msg":"all"},{"type":"dict_type","loc":["body",1],"msg":"one"}]}`},
	} {
		t.Run(test.reason, func(t *testing.T) {
			t.Parallel()
			var logged bytes.Buffer
			b := &broker{publish: func(string, []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
				return nil, fmt.Errorf("publish to %q: %w", "t", test.err)
			}}
			api := httpapi.New(b, httpapi.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
			w := do(api, "POST", "/topics/t/messages", `[{},{}]`, header{"X-Request-ID": "req-1"})
			if w.Code != test.status {
				t.Errorf("status %d, want %d", w.Code, test.status)
			}
			if diff := cmp.Diff(test.want, w.Body.String()); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if got := w.Header().Get("Retry-After"); (got == "1") != (test.status == 503) {
				t.Errorf("Retry-After %q", got)
			}
			for _, part := range []string{"request_id=req-1", "route=/topics/:id/messages", test.err.Error()} {
				if want := test.status >= 500; strings.Contains(strings.ReplaceAll(logged.String(), `\n`, "\n"), part) != want {
					t.Errorf("%q logged: %v, want %v; log: %s", part, !want, want, &logged)
				}
			}
		})
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want string
	}{
		{errors.New("secret"), `{"detail":"database is down"}`},
		{fastpubsub.ErrSchemaOutdated, `{"detail":"database schema is out of date: run db-migrate"}`},
		{fastpubsub.ErrBinaryOutdated, `{"detail":"database schema is newer than this server: upgrade the server"}`},
	} {
		b := &broker{check: func(ctx context.Context) error {
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 2*time.Second {
				t.Error("the check may take more than 2 seconds")
			}
			return test.err
		}}
		w := do(httpapi.New(b, httpapi.Config{Logger: silent}), "GET", "/readiness", "", nil)
		if w.Code != 503 || w.Body.String() != test.want {
			t.Errorf("%v: %d %s, want 503 %s", test.err, w.Code, w.Body, test.want)
		}
	}
}

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

func TestRequestID(t *testing.T) {
	t.Parallel()
	api := httpapi.New(working(), httpapi.Config{Logger: silent})
	for sent, kept := range map[string]bool{
		"7b1f:a/b=c":             true,
		"":                       false,
		"with space":             false,
		`quote"`:                 false,
		"é":                      false,
		strings.Repeat("x", 129): false,
	} {
		w := do(api, "GET", "/nowhere", "", header{"X-Request-ID": sent})
		got := w.Header().Get("X-Request-ID")
		if got == "" || (got == sent) != kept {
			t.Errorf("sent %q, answered %q", sent, got)
		}
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	api := httpapi.New(&broker{getTopic: func(string) (fastpubsub.Topic, error) { panic("secret") }},
		httpapi.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	w := do(api, "GET", "/topics/t", "", header{"X-Request-ID": "req-1"})
	if w.Code != 500 || w.Body.String() != `{"detail":"Internal Server Error"}` || w.Header().Get("X-Request-ID") != "req-1" {
		t.Errorf("answer: %d %s", w.Code, w.Body)
	}
	if got := logged.String(); !strings.Contains(got, "secret") || !strings.Contains(got, "req-1") || !strings.Contains(got, "status=500") {
		t.Errorf("log: %s", got)
	}
}

// waiting is a broker whose Consume waits for ctx, and says when it does.
func waiting() (b *broker, started chan struct{}) {
	started = make(chan struct{}, 1)
	return &broker{consume: func(ctx context.Context, _ string, _ fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
		started <- struct{}{}
		<-ctx.Done()
		return nil, fmt.Errorf("consume: %w", ctx.Err())
	}}, started
}

func TestEndWaits(t *testing.T) {
	t.Parallel()
	b, started := waiting()
	api := httpapi.New(b, httpapi.Config{Logger: silent})
	answers := make(chan *httptest.ResponseRecorder)
	go func() { answers <- do(api, "GET", "/subscriptions/s/messages?consumer_id=w&wait_seconds=30", "", nil) }()
	<-started
	api.EndWaits()
	api.EndWaits()
	if w := <-answers; w.Code != 200 || w.Body.String() != `{"data":[]}` {
		t.Errorf("answer: %d %s, want an empty one", w.Code, w.Body)
	}
	w := do(api, "GET", "/subscriptions/s/messages?consumer_id=w&wait_seconds=30", "", nil)
	if w.Code != 200 || w.Body.String() != `{"data":[]}` {
		t.Errorf("answer to a wait begun too late: %d %s, want an empty one", w.Code, w.Body)
	}
}

func TestClientGone(t *testing.T) {
	t.Parallel()
	b, started := waiting()
	var logged bytes.Buffer
	api := httpapi.New(b, httpapi.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := httptest.NewRequestWithContext(ctx, "GET", "/subscriptions/s/messages?consumer_id=w&wait_seconds=30", nil)
		api.ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-started
	cancel()
	<-done
	if logged.Len() > 0 {
		t.Errorf("logged: %s", &logged)
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
