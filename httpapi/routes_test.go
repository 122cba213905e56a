package httpapi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub/httpapi"
)

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
		{"nack of a delivery", "POST", "/subscriptions/s/nacks", `{"deliveries":[{"id":` + anID + `,"delivery_attempts":2}],"dead_letter":true,"error":"no"}`, nil, 204, ""},
		{"nack of deliveries and ids", "POST", "/subscriptions/s/nacks", `{"deliveries":[],"ids":[]}`, nil, 422, problem("value_error", `"body","deliveries"`, "must not be there beside ids")},
		{"nack, flag word", "POST", "/subscriptions/s/nacks", `{"ids":[],"dead_letter":"yes"}`, nil, 422, problem("bool_type", `"body","dead_letter"`, "must be true or false")},
		{"all that is wrong with a delivery", "POST", "/subscriptions/s/nacks", `{"deliveries":[{"id":"a","delivery_attempts":0},{},5]}`, nil, 422, `{"detail":[` +
			`{"type":"uuid_parsing","loc":["body","deliveries",0,"id"],"msg":"must be a UUID"},` +
			`{"type":"greater_than_equal","loc":["body","deliveries",0,"delivery_attempts"],"msg":"must be at least 1"},` +
			`{"type":"missing","loc":["body","deliveries",1,"id"],"msg":"must not be missing"},` +
			`{"type":"missing","loc":["body","deliveries",1,"delivery_attempts"],"msg":"must not be missing"},` +
			`{"type":"model_attributes_type","loc":["body","deliveries",2],"msg":"must be an object"}]}`},
		{"extend a delivery", "POST", "/subscriptions/s/leases", `{"deliveries":[{"id":` + anID + `,"delivery_attempts":2}],"ack_deadline_seconds":9}`, nil, 204, ""},
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

		{"create client", "POST", "/clients", `{"name":" My Application ","scopes":"*","is_active":true}`, nil, 201, `{"id":"` + anUUID + `","secret":"a1b2"}`},
		{"create client, is_active left out", "POST", "/clients", `{"name":"c","scopes":"topics:create"}`, nil, 201, `{"id":"` + anUUID + `","secret":"a1b2"}`},
		{"all that is wrong with a client", "POST", "/clients", `{"name":" ","scopes":"topics:write  topics:create:t","is_active":"yes"}`, nil, 422, `{"detail":[` +
			`{"type":"string_too_short","loc":["body","name"],"msg":"must have at least 1 character"},` +
			`{"type":"value_error","loc":["body","scopes"],"msg":"\"topics:write\": the actions of topics are create, read, delete, publish"},` +
			`{"type":"value_error","loc":["body","scopes"],"msg":"\"topics:create:t\": there is no scope to create one object, which has no id before"},` +
			`{"type":"bool_type","loc":["body","is_active"],"msg":"must be true or false"}]}`},
		{"client of nothing", "POST", "/clients", `{}`, nil, 422, `{"detail":[` +
			`{"type":"missing","loc":["body","name"],"msg":"must not be missing"},{"type":"missing","loc":["body","scopes"],"msg":"must not be missing"}]}`},
		{"client of numbers", "POST", "/clients", `{"name":1,"scopes":["*"],"is_active":1}`, nil, 422, `{"detail":[` +
			`{"type":"string_type","loc":["body","name"],"msg":"must be a string"},{"type":"string_type","loc":["body","scopes"],"msg":"must be a string"},` +
			`{"type":"bool_type","loc":["body","is_active"],"msg":"must be true or false"}]}`},
		{"client with a long name", "POST", "/clients", `{"name":"` + strings.Repeat("é", 257) + `","scopes":"*"}`, nil, 422, problem("string_too_long", `"body","name"`, "must have at most 256 characters, not 257")},
		{"client without scopes", "POST", "/clients", `{"name":"c","scopes":" "}`, nil, 422, problem("string_too_short", `"body","scopes"`, "must have at least 1 scope")},
		{"client of what is no JSON", "POST", "/clients", `{`, nil, 422, problem("json_invalid", `"body",1`, "must be JSON: unexpected end")},
		{"list clients", "GET", "/clients?offset=0&limit=100", "", nil, 200, `{"data":[` + wireC + `]}`},
		{"list clients, limit", "GET", "/clients?limit=101", "", nil, 422, problem("less_than_equal", `"query","limit"`, "must be at most 100")},
		{"get client", "GET", "/clients/" + anUUID, "", nil, 200, wireC},
		{"get client in upper case", "GET", "/clients/" + strings.ToUpper(anUUID), "", nil, 200, wireC},
		{"no client", "GET", "/clients/550e8400-e29b-41d4-a716-446655440000", "", nil, 404, `{"detail":"Client not found"}`},
		{"client id is none", "GET", "/clients/x", "", nil, 422, problem("uuid_parsing", `"path","id"`, "must be a UUID")},
		{"client id not UTF-8", "DELETE", "/clients/%ff", "", nil, 422, problem("uuid_parsing", `"path","id"`, "must be a UUID")},
		{"update client", "PUT", "/clients/" + anUUID, `{"name":"d","scopes":"*","is_active":false}`, nil, 200,
			strings.NewReplacer(`"c"`, `"d"`, "topics:read clients:read", "*", "true", "false").Replace(wireC)},
		{"update client, is_active null", "PUT", "/clients/" + anUUID, `{"name":"c","scopes":"topics:read clients:read topics:read","is_active":null}`, nil, 200, wireC},
		{"update no client", "PUT", "/clients/550e8400-e29b-41d4-a716-446655440000", `{"name":"d","scopes":"*"}`, nil, 404, `{"detail":"Client not found"}`},
		{"update no client to nothing", "PUT", "/clients/550e8400-e29b-41d4-a716-446655440000", `{"scopes":"*"}`, nil, 422, problem("missing", `"body","name"`, "must not be missing")},
		{"update what is no client", "PUT", "/clients/x", `{"name":"d","scopes":"*"}`, nil, 422, problem("uuid_parsing", `"path","id"`, "must be a UUID")},
		{"update, all that is wrong", "PUT", "/clients/x", `{"scopes":1}`, nil, 422, `{"detail":[{"type":"uuid_parsing","loc":["path","id"],"msg":"must be a UUID"},` +
			`{"type":"missing","loc":["body","name"],"msg":"must not be missing"},` +
			`{"type":"string_type","loc":["body","scopes"],"msg":"must be a string"}]}`},
		{"delete client", "DELETE", "/clients/" + anUUID, "", nil, 204, ""},
		{"delete no client", "DELETE", "/clients/550e8400-e29b-41d4-a716-446655440000", "", nil, 404, `{"detail":"Client not found"}`},

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
		"/clients":                       "GET, HEAD, OPTIONS, POST",
		"/clients/x":                     "DELETE, GET, HEAD, OPTIONS, PUT",
		"/oauth/token":                   "OPTIONS, POST",
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
