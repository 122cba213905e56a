package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub"
)

// executeWith is execute with something on stdin.
func executeWith(ctx context.Context, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(&process{ctx, stdin, &out, &err}, args)
	return code, out.String(), err.String()
}

// consumed takes everything and returns ids, payloads and attributes, a line each.
func consumed(t *testing.T, broker *fastpubsub.Broker) (ids, messages string) {
	t.Helper()
	for {
		msgs, err := broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if len(msgs) == 0 {
			return ids, messages
		}
		for _, msg := range msgs {
			ids += msg.ID.String() + "\n"
			messages += fmt.Sprintf("%s %v\n", msg.Payload, msg.Attributes)
		}
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	broker, _, flags := failing(t)
	publish := func(stdin string, args ...string) (code int, stdout, stderr string) {
		return executeWith(t.Context(), strings.NewReader(stdin), append(append([]string{"publish"}, args...), flags...)...)
	}
	for _, test := range []struct {
		reason string
		stdin  string
		args   []string
		want   string // messages
	}{
		{"arguments", "not read", []string{"t", `{"n": 1}`, `{"n":2 }`}, "{\"n\": 1} map[]\n{\"n\":2 } map[]\n"},
		{"attributes", "", []string{"t", `{}`, "-a", "k=v=w", "--attribute=x=a;b,c"}, "{} map[k:v=w x:a;b,c]\n"},
		{"lines", "{\"n\":1}\n\n  \r\n{\"n\":2}\r\n{\"n\":3}", []string{"t"}, "{\"n\":1} map[]\n{\"n\":2} map[]\n{\"n\":3} map[]\n"},
		{"nothing", "\n", []string{"t"}, ""},
		{"many lines", strings.Repeat("{}\n", 2500), []string{"t"}, strings.Repeat("{} map[]\n", 2500)},
		{"small batches", strings.Repeat("{}\n", 5), []string{"t", "--batch=2"}, strings.Repeat("{} map[]\n", 5)},
		{"a long line", `{"s":"` + strings.Repeat("x", 1<<20) + `"}`, []string{"t"}, `{"s":"` + strings.Repeat("x", 1<<20) + "\"} map[]\n"},
		{"envelopes", `{"id":"x","payload":{"n" : 1.0},"attributes":{"a":"b"}}` + "\n" + `{"payload":{}}`, []string{"t", "--envelopes", "-a", "c=d"},
			"{\"n\" : 1.0} map[a:b c:d]\n{} map[c:d]\n"},
	} {
		code, stdout, stderr := publish(test.stdin, test.args...)
		ids, messages := consumed(t, broker)
		if code != 0 || stderr != "" || stdout != ids {
			t.Errorf("%s: exit code %d, stderr %q, printed %q, want %q", test.reason, code, stderr, stdout, ids)
		}
		if diff := cmp.Diff(strings.TrimRight(test.want, "\n"), strings.ReplaceAll(strings.TrimRight(messages, "\n"), "\r", "")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.reason, diff)
		}
	}

	for _, test := range []struct {
		reason string
		stdin  string
		args   []string
		code   int
		stderr string
		ids    int
	}{
		{"no such topic", "", []string{"x", "{}"}, 1, "fastpubsub: publish: there is no topic \"x\"\n", 0},
		{"bad arguments", "", []string{"t", "{}", "[1]", "{"}, 2,
			"fastpubsub: PAYLOAD 2: payload: not an object at offset 0\nfastpubsub: PAYLOAD 3: payload: unexpected end at offset 1\n", 0},
		{"a bad line", "{}\n{}\n\n{\"a\":\"\\u0000\"}\n", []string{"t", "--batch=1"}, 2, "fastpubsub: line 4: payload: ", 2},
		{"no envelope", "{}", []string{"t", "--envelopes"}, 2, "fastpubsub: line 1: has no payload\n", 0},
		{"a bad envelope", "", []string{"t", `{"payload":{},"attributes":{"n":1}}`, "--envelopes"}, 2, "fastpubsub: PAYLOAD 1: must be {", 0},
		{"a bad batch", "", []string{"t", "--batch=0"}, 2, "fastpubsub: --batch: must be an integer from 1 to 10000", 0},
		{"a URL", "", []string{nowhere, "{}"}, 2, "fastpubsub: TOPIC: must be an id; a database URL belongs in FASTPUBSUB_DATABASE_URL\n", 0},
	} {
		code, stdout, stderr := publish(test.stdin, test.args...)
		if code != test.code || !strings.Contains(stderr, test.stderr) || strings.Count(stdout, "\n") != test.ids {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", test.reason, code, stdout, stderr)
		}
		if ids, _ := consumed(t, broker); ids != stdout {
			t.Errorf("%s: printed %q, published %q", test.reason, stdout, ids)
		}
	}
}

// What is there is published without waiting for the rest of a batch, or for the end.
func TestPublishSlowInput(t *testing.T) {
	t.Parallel()
	broker, _, flags := failing(t)
	in, writer := io.Pipe()
	ended := make(chan string, 1)
	go func() {
		code, _, stderr := executeWith(t.Context(), in, append([]string{"publish", "t"}, flags...)...)
		ended <- fmt.Sprint(code, stderr)
	}()
	if _, err := io.WriteString(writer, "{}\n"); err != nil {
		t.Fatal(err)
	}
	msgs, err := broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Wait: time.Minute})
	if err != nil || len(msgs) != 1 {
		t.Errorf("%v, %v", msgs, err)
	}
	writer.Close()
	if got := <-ended; got != "0" {
		t.Error(got)
	}
}

// A tailing is a tail that runs.
type tailing struct {
	out, err syncBuffer
	cancel   context.CancelFunc
	ended    chan int
}

func startTail(t *testing.T, args ...string) *tailing {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &tailing{cancel: cancel, ended: make(chan int, 1)}
	args = append([]string{"tail", "--log-level=debug"}, args...)
	go func() { r.ended <- run(&process{ctx, strings.NewReader(""), &r.out, &r.err}, args) }()
	t.Cleanup(cancel)
	return r
}

// waitFor waits until something was printed.
func (r *tailing) waitFor(t *testing.T, b *syncBuffer, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(b.String(), text); {
		if time.Now().After(end) {
			t.Fatalf("%q did not come; stdout %s, stderr %s", text, &r.out, &r.err)
		}
		time.Sleep(time.Millisecond) // between polls
	}
}

func TestTailTopic(t *testing.T) {
	t.Parallel()
	broker, db, flags := failing(t)
	if _, err := broker.Publish(t.Context(), "t", fastpubsub.JSON(map[string]int{"n": 0})); err != nil {
		t.Fatal(err)
	}
	// One transaction is open when tail begins, and commits after others.
	late, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Rollback(context.WithoutCancel(t.Context()))
	if _, err := broker.PublishTx(t.Context(), late, "t", fastpubsub.NewMessage{Payload: []byte("{\"n\":\n\"late\"}")}); err != nil {
		t.Fatal(err)
	}
	all := startTail(t, append([]string{"t"}, flags...)...)
	some := startTail(t, append([]string{"t", `--filter={"n":[2,"late"]}`, "--count=2"}, flags...)...)
	all.waitFor(t, &all.err, "following")
	some.waitFor(t, &some.err, "following")
	var want []string
	for n := 1; n <= 100; n++ {
		ids, err := broker.Publish(t.Context(), "t", fastpubsub.NewMessage{Payload: fmt.Appendf(nil, `{"n":%d}`, n), Attributes: map[string]string{"k": "v"}})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf(`{"id":"%s","topic_id":"t","payload":{"n":%d},"created_at":"`, ids[0], n))
	}
	all.waitFor(t, &all.out, `{"n":100}`)
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	all.waitFor(t, &all.out, `{"n": "late"}`)
	all.cancel()
	if code := <-all.ended; code != 0 {
		t.Errorf("exit code %d after an interrupt: %s", code, &all.err)
	}
	lines := strings.Split(strings.TrimSuffix(all.out.String(), "\n"), "\n")
	if len(lines) != 101 {
		t.Fatalf("%d lines: %s", len(lines), &all.out)
	}
	for i, line := range lines[:100] {
		if !strings.HasPrefix(line, want[i]) || !strings.HasSuffix(line, `Z","attributes":{"k": "v"}}`) {
			t.Errorf("line %d is %s, want %s", i, line, want[i])
		}
	}
	if code := <-some.ended; code != 0 {
		t.Errorf("exit code %d after all of the count: %s", code, &some.err)
	}
	if got := strings.Count(some.out.String(), "\n"); got != 2 || !strings.Contains(some.out.String(), `{"n":2}`) {
		t.Errorf("filtered: %s", &some.out)
	}
	// It took nothing, and left nothing.
	if _, messages := consumed(t, broker); strings.Count(messages, " map[") != 102 {
		t.Errorf("%d messages are left", strings.Count(messages, "\n"))
	}
	if subs, err := broker.ListSubscriptions(t.Context(), fastpubsub.ListOptions{}); err != nil || len(subs) != 1 {
		t.Errorf("%d subscriptions, %v", len(subs), err)
	}
}

// A large publish comes in pages, whole and in order.
func TestTailPages(t *testing.T) {
	t.Parallel()
	broker, _, flags := failing(t)
	tail := startTail(t, append([]string{"s"}, flags...)...)
	tail.waitFor(t, &tail.err, "following")
	const n = 10_000
	msgs := make([]fastpubsub.NewMessage, n)
	for i := range msgs {
		msgs[i].Payload = fmt.Appendf(nil, `{"n":%d,"s":%q}`, i, strings.Repeat("x", 100))
	}
	if _, err := broker.Publish(t.Context(), "t", msgs...); err != nil {
		t.Fatal(err)
	}
	tail.waitFor(t, &tail.out, fmt.Sprintf(`{"n":%d,`, n-1))
	i := 0
	for line := range strings.Lines(tail.out.String()) {
		if !strings.Contains(line, fmt.Sprintf(`"payload":{"n":%d,`, i)) {
			t.Fatalf("line %d is %s", i, line)
		}
		i++
	}
	if i != n {
		t.Errorf("%d lines, want %d", i, n)
	}
	if err := broker.DeleteTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	if code := <-tail.ended; code != 1 || !strings.Contains(tail.err.String(), "not found") {
		t.Errorf("exit code %d after the topic was deleted: %s", code, &tail.err)
	}
}

func TestTailAck(t *testing.T) {
	t.Parallel()
	broker, _, flags := failing(t)
	for n := range 150 {
		if _, err := broker.Publish(t.Context(), "t", fastpubsub.JSON(map[string]int{"n": n})); err != nil {
			t.Fatal(err)
		}
	}
	code, stdout, stderr := execute(t.Context(), append([]string{"tail", "s", "--ack", "--count=120"}, flags...)...)
	if code != 0 || stderr != "" || strings.Count(stdout, "\n") != 120 || !strings.Contains(stdout, `"subscription_id":"s","payload":{"n":119},"delivery_attempts":1,`) {
		t.Errorf("exit code %d, stdout %s, stderr %s", code, stdout, stderr)
	}
	m, err := broker.Metrics(t.Context(), "s")
	if err != nil || m.Acked != 120 || m.Available != 30 || m.Delivered != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	// A reader that goes away: what was not printed is given back, and no attempt is lost.
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	code = run(&process{t.Context(), strings.NewReader(""), writer, io.Discard}, append([]string{"tail", "s", "--ack"}, flags...))
	writer.Close()
	if code != 0 {
		t.Errorf("exit code %d after %v", code, syscall.EPIPE)
	}
	if _, messages := consumed(t, broker); strings.Count(messages, "\n") != 30 {
		t.Errorf("%d messages are left", strings.Count(messages, "\n"))
	}
}

func TestTailErrors(t *testing.T) {
	t.Parallel()
	broker, _, flags := failing(t)
	if _, err := broker.CreateTopic(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		reason string
		args   []string
		code   int
		stderr string
	}{
		{"both", []string{"s"}, 1, `there are a topic and a subscription \"s\": say which with --as`},
		{"neither", []string{"x"}, 1, `there is neither a topic nor a subscription \"x\"`},
		{"no topic", []string{"x", "--as=topic"}, 1, `there is no topic \"x\"`},
		{"no subscription", []string{"t", "--ack"}, 1, `there is no subscription \"t\"`},
		{"a filter", []string{"t", "--filter=[1]"}, 2, "--filter: "},
		{"a filter with ack", []string{"s", "--filter={}", "--ack"}, 2, "--filter: cannot be with --ack"},
		{"ack of a topic", []string{"t", "--as=topic", "--ack"}, 2, "--ack: is for a subscription"},
		{"a consumer", []string{"s", "--ack", "--consumer="}, 2, "--consumer: must have 1 to 128 characters"},
		{"a kind", []string{"s", "--as=queue"}, 2, "--as must be one of"},
		{"a URL", []string{nowhere}, 2, "ID: must be an id; a database URL belongs in FASTPUBSUB_DATABASE_URL"},
	} {
		code, stdout, stderr := execute(t.Context(), append(append([]string{"tail"}, test.args...), flags...)...)
		if code != test.code || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", test.reason, code, stdout, stderr)
		}
	}
}
