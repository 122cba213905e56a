package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// serverEnv tells this program that it is a server. Its settings are in the environment, too.
const serverEnv = "FASTPUBSUB_TEST_SERVER"

// TestCrashChild is no test but the server that TestServerKilled kills.
func TestCrashChild(t *testing.T) {
	if os.Getenv(serverEnv) == "" {
		return
	}
	go exitWithParent()
	if code := run(&process{t.Context(), os.Stdout, os.Stderr}, []string{"server"}); code != exitOK {
		t.Fatalf("exit code %d", code)
	}
}

// exitWithParent ends this process when the one that holds the other end of its input is gone.
func exitWithParent() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(exitFailure)
}

// A child is a server in a process of its own.
type child struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	ended  chan struct{}
}

func startChild(t *testing.T, settings ...string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0], "-test.run=^TestCrashChild$"), ended: make(chan struct{})}
	c.cmd.Env = append(append(os.Environ(), serverEnv+"=1"), settings...)
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	if _, err := c.cmd.StdinPipe(); err != nil { // for exitWithParent
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait() // ended and output say more
		close(c.ended)
	}()
	t.Cleanup(func() { c.kill() })
	return c
}

// kill ends it with SIGKILL. It returns an error if it had ended before.
func (c *child) kill() error {
	err := c.cmd.Process.Kill()
	<-c.ended
	if err != nil {
		return fmt.Errorf("%w; %v: %s", err, c.cmd.ProcessState, &c.output)
	}
	return nil
}

// waitReady waits until the server at url is ready.
func (c *child) waitReady(ctx context.Context, url string) error {
	for {
		answer, err := get(ctx, url+"/readiness")
		if err == nil && answer[:3] == "200" {
			return nil
		}
		select {
		case <-c.ended:
			return fmt.Errorf("the server ended: %s", &c.output)
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready: %s, %w", answer, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// crashAttempts is what the subscription of TestServerKilled allows.
const crashAttempts = 3

// A ledger has what clients were told. Its entries are the begins and ends of calls, which are numbered. What happened in
// a call that was cut off is not known.
type ledger struct {
	mu          sync.Mutex // protects the rest
	at          int
	begun       map[int]bool // somebody began to publish the message with this number in its payload
	byID        map[fastpubsub.ID]*fate
	byN         map[int]*fate
	acked       int // by calls that answered
	unsure      int // how many more may have been acked, by calls that were cut off
	nacked      int // by calls that answered
	redelivered int
	cut         int // acks and nacks that were cut off
	wrong       []error
}

// fate is what became of a message.
type fate struct {
	id       fastpubsub.ID
	n        int
	unsure   bool // it may have been acked
	dead     bool // it is a dead letter
	ackedAt  int  // the entry by which it is known to be acked, 0 for none
	deadAt   int  // the entry by which it is known to be dead
	handings []handing
}

// A handing is a delivery: the number of its entry, and of the attempt.
type handing struct{ at, attempts int }

// message is a message as a client gets it.
type message struct {
	ID       fastpubsub.ID   `json:"id"`
	Payload  json.RawMessage `json:"payload"`
	Attempts int             `json:"delivery_attempts"`
}

// begin numbers the begin of a call.
func (l *ledger) begin() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at++
	return l.at
}

func (l *ledger) find(format string, args ...any) {
	l.wrong = append(l.wrong, fmt.Errorf(format, args...))
}

// fate returns what is known about a message: its id and its payload belong together for ever.
func (l *ledger) fate(id fastpubsub.ID, payload []byte) *fate {
	var p struct{ N int }
	if err := json.Unmarshal(payload, &p); err != nil || string(payload) != numbered(p.N) {
		l.find("%v has the payload %q", id, payload)
	}
	f := l.byID[id]
	if f == nil {
		f = &fate{id: id, n: p.N}
		l.byID[id] = f
		if other := l.byN[p.N]; other != nil {
			l.find("message %d has two ids, %v and %v", p.N, other.id, id)
		}
		l.byN[p.N] = f
		if !l.begun[p.N] {
			l.find("message %d, %v, was never published", p.N, id)
		}
	}
	if f.n != p.N {
		l.find("%v is the id of two messages, %d and %d", id, f.n, p.N)
	}
	return f
}

func numbered(n int) string { return fmt.Sprintf(`{"n":%d}`, n) }

// publishing is the begin of a call, published its end.
func (l *ledger) publishing(from, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at++
	for i := range n {
		l.begun[from+i] = true
	}
}

func (l *ledger) published(from int, ids []fastpubsub.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at++
	for i, id := range ids {
		l.fate(id, []byte(numbered(from+i)))
	}
}

// delivered is the end of a call that began with the entry begun.
func (l *ledger) delivered(begun int, msgs []message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at++
	for _, m := range msgs {
		f := l.fate(m.ID, m.Payload)
		if m.Attempts < 1 || m.Attempts > crashAttempts {
			l.find("%v was delivered as attempt %d of %d", m.ID, m.Attempts, crashAttempts)
		}
		if f.ackedAt > 0 && f.ackedAt < begun {
			l.find("%v was delivered again after it had been acked", m.ID)
		}
		if f.deadAt > 0 && f.deadAt < begun {
			l.find("%v was delivered again after its last attempt had failed", m.ID)
		}
		for _, h := range f.handings {
			if h.at < begun && h.attempts >= m.Attempts {
				l.find("%v was delivered as attempt %d after attempt %d", m.ID, m.Attempts, h.attempts)
			}
		}
		if m.Attempts > 1 {
			l.redelivered++
		}
		f.handings = append(f.handings, handing{l.at, m.Attempts})
	}
}

// ackEnded is the end of an ack that counted so many, or was cut off.
func (l *ledger) ackEnded(msgs []message, n int, cutOff bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at++
	switch {
	case cutOff:
		l.cut++
		l.unsure += len(msgs)
	case n < 0 || n > len(msgs):
		l.find("%d of %d messages were acked", n, len(msgs))
	default:
		l.acked += n
	}
	for _, m := range msgs {
		f := l.byID[m.ID]
		switch {
		case cutOff || n > 0 && n < len(msgs):
			f.unsure = true
		case n == len(msgs):
			if f.ackedAt > 0 {
				l.find("%v was acked by two calls", m.ID)
			}
			f.ackedAt = l.at
		}
	}
}

// nackEnded is the end of a nack that counted so many, or was cut off.
func (l *ledger) nackEnded(msgs []message, n int, cutOff bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at++
	switch {
	case cutOff:
		l.cut++
		return
	case n < 0 || n > len(msgs):
		l.find("%d of %d messages were nacked", n, len(msgs))
	}
	l.nacked += n
	for _, m := range msgs {
		if n == len(msgs) && m.Attempts == crashAttempts {
			l.byID[m.ID].deadAt = l.at
		}
	}
}

// audit takes out of the subscription what waits there, and accounts for each message. Nobody else may be working.
func (l *ledger) audit(t *testing.T, b *fastpubsub.Broker, clock *storetest.Clock) error {
	t.Helper()
	before, err := b.Metrics(t.Context(), "s")
	if err != nil {
		return err
	}
	after, told := before, l.acked
	for round := 0; after.Available+after.Delivered > 0; round++ {
		if round == 20 {
			return fmt.Errorf("messages wait that nobody gets: %+v", after)
		}
		if err := l.drain(t.Context(), b); err != nil {
			return err
		}
		if err := clock.Move(t.Context(), time.Hour); err != nil {
			return err
		}
		if after, err = b.Metrics(t.Context(), "s"); err != nil {
			return err
		}
	}
	for offset, more := 0, true; more; offset += 100 {
		letters, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{Offset: offset, Limit: 100})
		if err != nil {
			return err
		}
		for _, letter := range letters {
			f := l.fate(letter.ID, letter.Payload)
			if f.dead {
				l.find("%v is listed twice", f.id)
			}
			f.dead = true
			if letter.DeliveryAttempts != crashAttempts {
				l.find("%v is dead after %d of %d attempts", f.id, letter.DeliveryAttempts, crashAttempts)
			}
		}
		more = len(letters) == 100
	}
	var all, dead, lost int64
	for _, f := range l.byID {
		all++
		switch {
		case f.dead:
			dead++
			if f.ackedAt > 0 {
				l.find("%v was acked and is dead", f.id)
			}
		case f.deadAt > 0:
			l.find("%v is not dead, though its last attempt failed", f.id)
		case f.ackedAt == 0 && !f.unsure:
			lost++
		}
	}
	if lost > 0 {
		l.find("of %d messages %d are lost", all, lost)
	}
	if sum := before.Available + before.Delivered + before.Acked + before.DeadLetters; sum != all {
		l.find("metrics count %d of %d messages: %+v", sum, all, before)
	}
	if want := (fastpubsub.Metrics{Acked: all - dead, DeadLetters: dead}); after != want {
		l.find("metrics are %+v in the end, want %+v", after, want)
	}
	if n := int(after.Acked); n < l.acked || n > l.acked+l.unsure {
		l.find("%d messages are acked, but clients were told %d, and for %d not told", n, l.acked, l.unsure)
	}
	t.Logf("%d messages: %d acked, %d nacked and %d redelivered by HTTP, %d dead; %d acks and nacks were cut off, with acks of %d messages; before the end: %+v",
		all, told, l.nacked, l.redelivered, dead, l.cut, l.unsure, before)
	if n := len(l.wrong); n > 10 {
		return fmt.Errorf("%w\nand %d more", errors.Join(l.wrong[:10]...), n-10)
	}
	return errors.Join(l.wrong...)
}

func (l *ledger) drain(ctx context.Context, b *fastpubsub.Broker) error {
	for {
		begun := l.begin()
		got, err := b.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "auditor", Max: 100})
		if err != nil || len(got) == 0 {
			return err
		}
		msgs, ids := make([]message, len(got)), make([]fastpubsub.ID, len(got))
		for i, m := range got {
			msgs[i], ids[i] = message{m.ID, m.Payload, m.DeliveryAttempts}, m.ID
		}
		l.delivered(begun, msgs)
		n, err := b.Ack(ctx, "s", ids)
		if err != nil {
			return err
		}
		l.ackEnded(msgs, n, false)
	}
}

// clients are the load of a server.
type clients struct {
	url       string
	ledger    ledger
	next      atomic.Int64 // number of a message
	sent      atomic.Int64 // messages published in this round
	stepped   atomic.Int64 // steps of consumers in this round
	killing   atomic.Bool  // the server is being killed, or soon will be
	clockMu   sync.Mutex   // lets one client move the clock
	clock     *storetest.Clock
	transport http.Transport
}

// errCutOff means that nobody knows whether a request was served.
var errCutOff = errors.New("cut off")

// call sends a request and reads the answer, whose status must be the one given. Its error is errCutOff if the kill, or
// other clients, explain it.
func (c *clients) call(ctx context.Context, method, path string, body any, status int, answer any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.Header.Set("Prefer", "return=representation")
	got, err := (&http.Client{Transport: &c.transport}).Do(r)
	if err == nil {
		defer got.Body.Close()
		text, err = io.ReadAll(got.Body)
	}
	switch {
	case err != nil && c.killing.Load():
		return errCutOff
	case err != nil:
		return err
	case got.StatusCode == http.StatusServiceUnavailable: // busy
		return errCutOff
	case got.StatusCode != status:
		return fmt.Errorf("%s %s: %d %s", method, path, got.StatusCode, text)
	}
	return json.Unmarshal(text, answer)
}

// again reports whether a client goes on after a call that was cut off, or else with which error it ends.
func (c *clients) again(err error) (bool, error) {
	if !errors.Is(err, errCutOff) {
		return false, err
	}
	return !c.killing.Load(), nil
}

// publish goes on until the server is gone, not too far ahead of the consumers.
func (c *clients) publish(ctx context.Context) error {
	for {
		for c.sent.Load() > 50+5*c.stepped.Load() && !c.killing.Load() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		n := 1 + int(c.next.Load()%5)
		from := int(c.next.Add(int64(n))) - n
		payloads := make([]json.RawMessage, n)
		for i := range payloads {
			payloads[i] = json.RawMessage(numbered(from + i))
		}
		c.ledger.publishing(from, n)
		var answer struct{ IDs []fastpubsub.ID }
		err := c.call(ctx, http.MethodPost, "/topics/t/messages", payloads, http.StatusCreated, &answer)
		if err != nil {
			if again, err := c.again(err); !again {
				return err
			}
			continue
		}
		if len(answer.IDs) != n {
			return fmt.Errorf("%d ids for %d messages", len(answer.IDs), n)
		}
		c.ledger.published(from, answer.IDs)
		c.sent.Add(int64(n))
	}
}

// consume goes on until the server is gone. It acks most of what it gets, nacks some and forgets the rest, and moves the
// clock.
func (c *clients) consume(ctx context.Context, rng *rand.Rand) error {
	for {
		err := c.step(ctx, rng)
		if err == nil {
			err = c.move(ctx, time.Duration(rng.Int64N(int64(300*time.Millisecond))))
		}
		if err != nil {
			if again, err := c.again(err); !again {
				return err
			}
		}
		c.stepped.Add(1)
	}
}

func (c *clients) move(ctx context.Context, d time.Duration) error {
	c.clockMu.Lock()
	defer c.clockMu.Unlock()
	return c.clock.Move(ctx, d)
}

func (c *clients) step(ctx context.Context, rng *rand.Rand) error {
	begun := c.ledger.begin()
	path := fmt.Sprintf("/subscriptions/s/messages?consumer_id=c&batch_size=%d&ack_deadline_seconds=%d", 1+rng.IntN(10), 1+rng.IntN(2))
	var got struct{ Data []message }
	if err := c.call(ctx, http.MethodGet, path, nil, http.StatusOK, &got); err != nil {
		return err
	}
	c.ledger.delivered(begun, got.Data)
	var acks, nacks []message
	for _, m := range got.Data {
		switch i := rng.IntN(10); {
		case i < 6:
			acks = append(acks, m)
		case i < 9:
			nacks = append(nacks, m)
		}
	}
	for _, i := range rng.Perm(2) {
		var err error
		switch {
		case i == 0 && len(acks) > 0:
			err = c.end(ctx, "acks", acks, c.ledger.ackEnded)
		case i == 1 && len(nacks) > 0:
			err = c.end(ctx, "nacks", nacks, c.ledger.nackEnded)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// end acks or nacks messages.
func (c *clients) end(ctx context.Context, route string, msgs []message, told func(msgs []message, n int, cutOff bool)) error {
	ids := make([]fastpubsub.ID, len(msgs))
	for i, m := range msgs {
		ids[i] = m.ID
	}
	var answer struct{ Count int }
	err := c.call(ctx, http.MethodPost, "/subscriptions/s/"+route, ids, http.StatusOK, &answer)
	if err == nil || errors.Is(err, errCutOff) {
		told(msgs, answer.Count, err != nil)
	}
	return err
}

// TestServerKilled kills the server process under load, several times: each message is acked once, or dead after as many
// attempts as are allowed, and none that was acked comes back.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	const (
		rounds   = 4
		patience = time.Minute // for each round
	)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	db := storetest.New(t)
	clock := db.StopClock(t)
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	_, err = b.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: "s", TopicID: "t",
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: crashAttempts,
			BackoffMin: time.Second, BackoffMax: 2 * time.Second, AckDeadline: 2 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}

	port, err := pgserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	database, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	name := db.Schema + "_api" // of the server's connections
	query := database.Query()
	query.Set("application_name", name)
	database.RawQuery = query.Encode()
	settings := []string{
		"FASTPUBSUB_DATABASE_URL=" + database.String(), "FASTPUBSUB_DATABASE_SCHEMA=" + db.Schema,
		"FASTPUBSUB_API_HOST=127.0.0.1", "FASTPUBSUB_API_PORT=" + strconv.Itoa(port), "FASTPUBSUB_LOG_LEVEL=warning",
	}

	c := &clients{url: "http://127.0.0.1:" + strconv.Itoa(port), clock: clock, ledger: ledger{
		begun: map[int]bool{}, byID: map[fastpubsub.ID]*fate{}, byN: map[int]*fate{},
	}}
	defer c.transport.CloseIdleConnections()
	for range rounds {
		server := startChild(t, settings...)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := server.waitReady(ctx, c.url); err != nil {
			t.Fatal(err)
		}
		c.killing.Store(false)
		c.sent.Store(0)
		c.stepped.Store(0)
		g, loaded := errgroup.WithContext(ctx)
		for range 3 {
			rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
			g.Go(func() error { return c.publish(ctx) })
			g.Go(func() error { return c.consume(ctx, rng) })
		}
		sent, steps := 50+rng.Int64N(200), 20+rng.Int64N(60)
		for (c.sent.Load() < sent || c.stepped.Load() < steps) && loaded.Err() == nil {
			time.Sleep(time.Millisecond) // the load decides, not the clock
		}
		c.killing.Store(true)
		killErr := server.kill()
		if err := errors.Join(killErr, g.Wait()); err != nil {
			t.Fatal(err)
		}
		// What the server asked the database for may go on until that sees that it is gone.
		for n := 1; n > 0; {
			err := db.Pool.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, name).Scan(&n)
			if err != nil {
				t.Fatalf("%d connections of the killed server: %v", n, err)
			}
		}
	}
	if err := c.ledger.audit(t, b, clock); err != nil {
		t.Error(err)
	}
}
