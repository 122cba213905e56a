package httpapi_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// nasty are payloads that somebody between two clients could have thought to know better about.
func nasty() []string {
	return []string{
		`{}`, `{ }`, "{\t\r\n }",
		`{"b":1,"a":2,"a":3,"":4}`,
		`{"a":1.0,"b":1.50e+01,"c":-0,"d":-0.0,"e":1E5,"f":0.1e-7,"g":12345678901234567890123456789.123456789012345678901234567890}`,
		`{"a":1e400,"b":1e-400,"c":9007199254740993,"d":18446744073709551616}`,
		`{"a":"\u00e9é\/\/ / \\ \" \b\f\n\r\t \u2028\u2029` + "\u2028\u2029" + `"}`,
		`{"a":"<script>&amp;&#39;'</script>"}`,
		`{"a":"\ud83d\ude00😀\uD83D\uDE00"}`,
		`{"a":"\u0001\u001f` + "\u007f\u0080\u00a0\ufeff\ufffd\uffff\U0010ffff" + `"}`,
		`{"\u0061":1,"a":2,"A":3,"é":4,"e` + "\u0301" + `":5}`,
		`{"a":"],[{}","b":"}","c":"{\"id\":\"x\"}","payload":{"payload":{}},"id":"mine"}`,
		`{"a":"\\","b":"\\\\\"","c":"\\u0000"}`,
		`{"a":null,"b":true,"c":false,"d":[],"e":{},"f":[[],[[]],{}],"g":[null,1,"",{"x":[]}]}`,
		`{"__proto__":{"x":1},"constructor":0,"$ref":"#/","a.b":{"c":1},"a":{"b.c":2}}`,
		`{"a":"{{7*7}} ${x} %s %n $1 ' -- ; /* */ \\x41 \\N"}`,
		`{"numbers":[` + strings.Repeat("1.000,", 999) + `1.000]}`,
		`{"long":"` + strings.Repeat("é", 100_000) + `"}`,
		`{"deep":` + strings.Repeat("[", 127) + strings.Repeat("]", 127) + `}`,
		"{ \"space\" :\t1 ,\r\n\"b\" : [ 1 , 2 ] }",
	}
}

// published takes payloads through a real server, in both forms of a publish, and returns what a consumer gets.
func published(t *testing.T, c client, payloads []string) []string {
	t.Helper()
	var got []string
	for len(got) < len(payloads) {
		before := len(got)
		text := c.do("GET", "/subscriptions/s/messages?consumer_id=w&batch_size=7&wait_seconds=20", "", 200, nil)
		// The bytes, not what a decoder makes of them.
		var answer struct{ Data []message }
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			t.Fatal(err)
		}
		for _, m := range answer.Data {
			if !strings.Contains(text, `,"payload":`+string(m.Payload)+`,"delivery_attempts":1,`) {
				t.Errorf("%.200s is not in the answer", m.Payload)
			}
			got = append(got, string(m.Payload))
		}
		if len(got) == before {
			t.Fatalf("%d payloads, want %d", len(got), len(payloads))
		}
	}
	return got
}

func TestPayloadsAreKept(t *testing.T) {
	t.Parallel()
	c := serve(t, storetest.New(t))
	c.do("POST", "/topics", `{"id":"t"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"s","topic_id":"t"}`, 201, nil)
	all := nasty()
	c.do("POST", "/topics/t/messages", "\n[ "+strings.Join(all, " ,\n\t")+" ]\r\n", 204, nil)
	if diff := cmp.Diff(all, published(t, c, all)); diff != "" {
		t.Errorf("payloads of a list (-want +got):\n%s", diff)
	}
	messages := strings.Join(all, `, "attributes" : {"k":"\u00e9\\"} } , { "payload" : `)
	c.do("POST", "/topics/t/messages", `{"x":1,"messages" : [ { "payload" : `+messages+` } ] }`, 204, nil)
	if diff := cmp.Diff(all, published(t, c, all)); diff != "" {
		t.Errorf("payloads of messages (-want +got):\n%s", diff)
	}
	// As dead letters have them.
	c.do("POST", "/topics", `{"id":"dead"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"dead","topic_id":"dead","max_delivery_attempts":1}`, 201, nil)
	c.do("POST", "/topics/dead/messages", "["+strings.Join(all, ",")+"]", 204, nil)
	for dead := 0; dead < len(all); {
		msgs := c.consume("dead")
		var ids []string
		for _, m := range msgs {
			ids = append(ids, `"`+m.ID+`"`)
		}
		c.do("POST", "/subscriptions/dead/nacks", "["+strings.Join(ids, ",")+"]", 204, nil)
		if dead += len(msgs); len(msgs) == 0 {
			t.Fatalf("%d messages, want %d", dead, len(all))
		}
	}
	dlq := c.do("GET", "/subscriptions/dead/dlq?limit=100", "", 200, nil)
	for _, payload := range all {
		if !strings.Contains(dlq, `,"payload":`+payload+`,"delivery_attempts":1,`) {
			t.Errorf("%.200s is not among the dead letters", payload)
		}
	}
}

// The largest body is 16 MiB, as one payload or as many, and a byte more is refused.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	const limit = 16 << 20
	c := serve(t, storetest.New(t))
	c.do("POST", "/topics", `{"id":"t"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"s","topic_id":"t"}`, 201, nil)
	const start, unit, end = `{"a":"`, `x<é\u00e9 `, `"}`
	one := start + strings.Repeat(unit, (limit-64)/len(unit))
	one += strings.Repeat("x", limit-len("[]")-len(end)-len(one)) + end
	const n = 10_000
	size := (limit - 2 - n) / n
	many := make([]string, n)
	for i := range many {
		many[i] = fmt.Sprintf(`{"n":%4d,"a":"%s"}`, i, strings.Repeat("x", size-len(`{"n":0000,"a":""}`)))
	}
	list := "[" + strings.Join(many, ",") + "]"
	for _, body := range []string{"[" + one + "]", list + strings.Repeat(" ", limit-len(list))} {
		if len(body) != limit {
			t.Fatalf("a body of %d bytes, want %d", len(body), limit)
		}
		const detail = `{"detail":"The body must have at most 16777216 bytes"}`
		if got := c.do("POST", "/topics/t/messages", body+" ", 413, nil); got != detail {
			t.Errorf("%s, want %s", got, detail)
		}
		c.do("POST", "/topics/t/messages", body, 204, nil)
	}
	text := c.do("GET", "/subscriptions/s/messages?consumer_id=w&batch_size=1&wait_seconds=20", "", 200, nil)
	if !strings.Contains(text, `,"payload":`+one+`,"delivery_attempts":1,`) {
		t.Errorf("the large payload was changed: an answer of %d bytes", len(text))
	}
	for got := 0; got < n; {
		var answer struct{ Data []message }
		if err := json.Unmarshal([]byte(c.do("GET", "/subscriptions/s/messages?consumer_id=w&batch_size=100&wait_seconds=20", "", 200, nil)), &answer); err != nil {
			t.Fatal(err)
		}
		if len(answer.Data) == 0 {
			t.Fatalf("%d messages, want %d", got, n)
		}
		for _, m := range answer.Data {
			if string(m.Payload) != many[got] {
				t.Fatalf("message %d is %s, want %s", got, m.Payload, many[got])
			}
			got++
		}
	}
}

// A body that is wrong every few bytes does not get an answer that is many times as long.
func TestManyProblems(t *testing.T) {
	t.Parallel()
	const size, most = 4 << 20, 2 << 20
	api := httpapi.New(working(), httpapi.Config{Logger: silent})
	repeated := func(start, part, end string) string {
		return start + strings.Repeat(part, (size-len(start)-len(end))/len(part)) + end
	}
	for _, body := range []string{
		repeated(`[`, `1,`, `1]`),
		repeated(`{"messages":[`, `1,`, `1]}`),
		repeated(`{"messages":[{"payload":{},"attributes":{`, `"a":1,`, `"a":1}}]}`),
		repeated(`{"messages":[`, `{"payload":1,"attributes":1},`, `1]}`),
	} {
		if w := do(api, "POST", "/topics/t/messages", body, nil); w.Code != 422 && w.Code != 204 || w.Body.Len() > most {
			t.Errorf("%.50s: status %d, an answer of %d bytes", body, w.Code, w.Body.Len())
		}
	}
}
