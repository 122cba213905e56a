package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// poll is a long poll that was sent.
type poll struct{ net.Conn }

func (c client) poll(subscription string) poll {
	c.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET /subscriptions/%s/messages?consumer_id=w&batch_size=1&wait_seconds=30 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", subscription); err != nil {
		c.t.Fatal(err)
	}
	return poll{conn}
}

// answered says whether there is something to read already.
func (p poll) answered(t *testing.T) bool {
	t.Helper()
	if err := p.SetReadDeadline(time.Now().Add(time.Microsecond)); err != nil {
		t.Fatal(err)
	}
	var netErr net.Error
	if _, err := p.Read(make([]byte, 1)); !errors.As(err, &netErr) || !netErr.Timeout() {
		return true
	}
	return p.SetReadDeadline(time.Time{}) != nil
}

func waitForAcquires(t *testing.T, pool *pgxpool.Pool, n int64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); pool.Stat().AcquireCount() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("connections were acquired %d times, want %d", pool.Stat().AcquireCount(), n)
		}
	}
}

// Consumers that wait have no connection of the database: others go on, though there are only two.
func TestLongPollsHoldNoConnection(t *testing.T) {
	t.Parallel()
	const polls = 50
	db := storetest.New(t, func(c *pgxpool.Config) { c.MaxConns = 2 })
	c := serve(t, db)
	for _, id := range []string{"t", "other"} {
		c.do("POST", "/topics", `{"id":"`+id+`"}`, 201, nil)
		c.do("POST", "/subscriptions", `{"id":"`+id+`","topic_id":"`+id+`"}`, 201, nil)
	}
	begun := db.Pool.Stat().AcquireCount()
	var all []poll
	for range polls {
		all = append(all, c.poll("t"))
	}
	waitForAcquires(t, db.Pool, begun+polls)
	for range 20 {
		c.do("POST", "/topics/other/messages", `[{},{}]`, 204, nil)
		msgs := c.consume("other")
		for _, msg := range msgs {
			c.do("POST", "/subscriptions/other/acks", `["`+msg.ID+`"]`, 204, nil)
		}
		c.do("GET", "/readiness", "", 200, nil)
	}
	for _, p := range all {
		if p.answered(t) {
			t.Fatal("a consumer did not wait")
		}
	}
	got := map[string]bool{}
	c.do("POST", "/topics/t/messages", "["+strings.Repeat("{},", polls-1)+"{}]", 204, nil)
	for _, p := range all {
		text, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(string(text), "\r\n\r\n")
		var answer struct{ Data []message }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || len(answer.Data) != 1 {
			t.Fatalf("answer %s, %v", text, err)
		}
		got[answer.Data[0].ID] = true
	}
	if len(got) != polls {
		t.Errorf("%d different messages, want %d", len(got), polls)
	}
}

// TestThousandLongPolls does not run in parallel: it looks at the memory of the process.
func TestThousandLongPolls(t *testing.T) {
	const (
		polls      = 1000
		mostBytes  = 96 << 10 // for each, with the client's end
		lookEvery  = 50 * time.Millisecond
		mostOthers = 200 // connections acquired for other requests
	)
	db := storetest.New(t, func(c *pgxpool.Config) { c.MaxConns = 5 })
	c := serve(t, db)
	c.do("POST", "/topics", `{"id":"t"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"s","topic_id":"t"}`, 201, nil)
	before := memory()
	begun := db.Pool.Stat().AcquireCount()
	all := make([]poll, polls)
	for i := range all {
		all[i] = c.poll("s")
	}
	waitForAcquires(t, db.Pool, begun+polls)
	if each := (memory() - before) / polls; each > mostBytes {
		t.Errorf("a long poll takes %d bytes, want %d at most", each, mostBytes)
	} else {
		t.Logf("a long poll takes %d bytes", each)
	}

	// One looks for all. On a slow machine it looks less often.
	start, looks := time.Now(), db.Pool.Stat().AcquireCount()
	for range 50 {
		c.do("GET", "/topics/t", "", 200, nil)
		time.Sleep(10 * time.Millisecond)
	}
	looks = db.Pool.Stat().AcquireCount() - looks
	if most := int64(time.Since(start)/lookEvery) + mostOthers; looks > most {
		t.Errorf("%d looks in %v, want %d at most", looks, time.Since(start), most)
	}
	for _, p := range all {
		p.Close()
	}
}

// memory is what the heap and the stacks have.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// leaving is a broker whose client goes away when it has taken messages.
type leaving struct {
	*fastpubsub.Broker
	leave func()
}

func (l *leaving) Consume(ctx context.Context, id string, o fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
	msgs, err := l.Broker.Consume(ctx, id, o)
	if o.Consumer == "leaves" {
		l.leave()
		<-ctx.Done()
	}
	return msgs, err
}

// Messages that were taken for a client that has gone are there for the next, as if they had not been taken.
func TestGivenBack(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	real, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	b := &leaving{Broker: real}
	served := make(chan struct{}, 10)
	api := httpapi.New(b, httpapi.Config{Logger: silent})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { served <- struct{}{} }()
		api.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	c := client{t, server.URL}
	c.do("POST", "/topics", `{"id":"t"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":1}`, 201, nil)
	c.do("POST", "/topics/t/messages", `[{"n":1},{"n":2}]`, 204, nil)
	for range 3 {
		<-served
	}
	for _, wait := range []string{"0", "30"} {
		ctx, cancel := context.WithCancel(t.Context())
		b.leave = cancel
		r, err := http.NewRequestWithContext(ctx, "GET", c.url+"/subscriptions/s/messages?consumer_id=leaves&wait_seconds="+wait, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := http.DefaultClient.Do(r); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		<-served
	}
	got := c.consume("s")
	if len(got) == 1 { // a call stops at another test's transaction
		got = append(got, c.consume("s")...)
	}
	if len(got) != 2 || got[0].DeliveryAttempts != 1 || got[1].DeliveryAttempts != 1 {
		t.Errorf("the next got %+v, want both messages for the first time", got)
	}
}

// A client that does not read its answer is cut off, and its messages are given back.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	b := working()
	delivery := fastpubsub.Delivery{ID: message1, DeliveryAttempts: 3}
	b.consume = func(context.Context, string, fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
		return []fastpubsub.Message{{Delivery: delivery, SubscriptionID: "s",
			Payload: json.RawMessage(`{"a":"` + strings.Repeat("x", 16<<20) + `"}`), CreatedAt: created}}, nil
	}
	back := make(chan []fastpubsub.Delivery, 1)
	var deadline atomic.Int64
	b.extend = func(_ string, ds []fastpubsub.Delivery, d time.Duration) (int, error) {
		deadline.Store(int64(d))
		back <- ds
		return len(ds), nil
	}
	server := httptest.NewServer(httpapi.New(b, httpapi.Config{Logger: silent, AnswerTimeout: 100 * time.Millisecond}))
	t.Cleanup(server.Close)
	p := client{t, server.URL}.poll("s")
	select {
	case got := <-back:
		if diff := cmp.Diff([]fastpubsub.Delivery{delivery}, got); diff != "" || deadline.Load() != 0 {
			t.Errorf("given back (-want +got), for %v:\n%s", time.Duration(deadline.Load()), diff)
		}
	case <-time.After(time.Minute):
		t.Fatal("the messages are not given back")
	}
	if text, err := io.ReadAll(p); err == nil && len(text) > 16<<20 {
		t.Error("the client got all of the answer")
	}
}

// What a client got in full is not given back, even if it goes away at once.
func TestNotGivenBack(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(httpapi.New(func() httpapi.Broker {
		b := working()
		b.extend = func(string, []fastpubsub.Delivery, time.Duration) (int, error) {
			t.Error("given back")
			return 0, nil
		}
		return b
	}(), httpapi.Config{Logger: silent}))
	for range 20 {
		p := client{t, server.URL}.poll("s")
		text, err := io.ReadAll(p)
		if err != nil || !strings.HasSuffix(string(text), messagesOfS) {
			t.Errorf("answer %q, %v", text, err)
		}
		p.Close()
	}
	server.Close() // waits for requests
}
