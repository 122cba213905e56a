package fastpubsubtest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/fastpubsubtest"
)

// withoutRun makes the test binary run as if TestMain did not use fastpubsubtest.Run.
const withoutRun = "FASTPUBSUBTEST_WITHOUT_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(withoutRun) != "" {
		os.Exit(m.Run())
	}
	os.Exit(fastpubsubtest.Run(m))
}

// A fakeT is a test that may fail, or an Example that would like to be one.
type fakeT struct {
	testing.TB // nil, since it is none; what it lacks is not called
	name       string

	mu       sync.Mutex // protects the rest
	said     []string   // by Errorf and Fatalf
	log      bytes.Buffer
	cleanups []func()
	ctx      context.Context
}

// fake runs a test and returns what it complains about; nothing if it passes.
func fake(name string, test func(t testing.TB)) string {
	ctx, cancel := context.WithCancel(context.Background())
	t := &fakeT{name: name, ctx: ctx}
	run := func(f func()) { // Fatalf ends the goroutine
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
	run(func() { test(t) })
	cancel()
	for len(t.cleanups) > 0 {
		last := t.cleanups[len(t.cleanups)-1]
		t.cleanups = t.cleanups[:len(t.cleanups)-1]
		run(last)
	}
	return strings.Join(t.said, "\n")
}

func (t *fakeT) Helper()                  {}
func (t *fakeT) Name() string             { return t.name }
func (t *fakeT) Context() context.Context { return t.ctx }
func (t *fakeT) Output() io.Writer        { return t }

func (t *fakeT) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.log.Write(p)
}

func (t *fakeT) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

func (t *fakeT) Errorf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.said = append(t.said, fmt.Sprintf(format, args...))
}

func (t *fakeT) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

func (t *fakeT) Fatal(args ...any) { t.Fatalf("%s", fmt.Sprint(args...)) }

// mustSay makes the test fail unless each text is there.
func mustSay(t *testing.T, said string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(said, text) {
			t.Errorf("it did not say %q, but\n%s", text, said)
		}
	}
}

// newKit returns a kit with a topic "orders" and its subscription "emails".
func newKit(t testing.TB) *fastpubsubtest.Kit {
	t.Helper()
	kit := fastpubsubtest.New(t, fastpubsubtest.Options{})
	kit.Subscribe(t, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
	return kit
}

func publish(t testing.TB, kit *fastpubsubtest.Kit, topicID string, payloads ...string) []fastpubsub.ID {
	t.Helper()
	var msgs []fastpubsub.NewMessage
	for _, payload := range payloads {
		msgs = append(msgs, fastpubsub.NewMessage{Payload: []byte(payload)})
	}
	ids, err := kit.Broker.Publish(t.Context(), topicID, msgs...)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func consume(t testing.TB, kit *fastpubsubtest.Kit, subscriptionID string) []fastpubsub.Message {
	t.Helper()
	msgs, err := kit.Broker.Consume(t.Context(), subscriptionID, fastpubsub.ConsumeOptions{Consumer: "test", Max: 100})
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

// payloads are those of messages, sorted.
func payloads(msgs []fastpubsub.Message) []string {
	var all []string
	for _, msg := range msgs {
		all = append(all, string(msg.Payload))
	}
	slices.Sort(all)
	return all
}

func count(t testing.TB, kit *fastpubsubtest.Kit, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := kit.Pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func exec(t testing.TB, kit *fastpubsubtest.Kit, sql string, args ...any) {
	t.Helper()
	if _, err := kit.Pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}
