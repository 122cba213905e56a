package client_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/client"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// seen counts deliveries by message.
type seen struct {
	mu sync.Mutex // protects n
	n  map[fastpubsub.ID]int
}

func (s *seen) add(id fastpubsub.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		s.n = map[fastpubsub.ID]int{}
	}
	s.n[id]++
}

func (s *seen) messages() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.n)
}

// receiving is a Receive that goes on.
type receiving struct {
	t    *testing.T
	stop context.CancelFunc
	done chan error
}

func receive(t *testing.T, c *client.Client, handle fastpubsub.Handler, options fastpubsub.ReceiveOptions) *receiving {
	ctx, cancel := context.WithCancel(t.Context())
	r := &receiving{t, cancel, make(chan error, 1)}
	go func() { r.done <- c.Receive(ctx, "s", handle, options) }()
	t.Cleanup(cancel)
	return r
}

// end returns what Receive does.
func (r *receiving) end() error {
	r.t.Helper()
	r.stop()
	return r.ended()
}

func (r *receiving) ended() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(time.Minute):
		r.t.Fatal("Receive does not end")
		return nil
	}
}

// What handlers say becomes of their messages, each is delivered once, and what none has begun with is given back.
func TestReceive(t *testing.T) {
	checkLeaks(t)
	s, _ := newServer(t, true)
	_, options := s.credentials("subscriptions:consume:s", "subscriptions:read:s")
	c := s.client(options)
	ids := s.fill(3000, fastpubsub.SubscriptionSettings{BackoffMin: time.Hour, BackoffMax: time.Hour})
	index := map[fastpubsub.ID]int{}
	for i, id := range ids {
		index[id] = i
	}
	var all seen
	r := receive(t, c, func(_ context.Context, msg fastpubsub.Message) error {
		all.add(msg.ID)
		switch index[msg.ID] % 10 {
		case 1:
			return errors.New("not now")
		case 2:
			return fastpubsub.Permanent(errors.New("never"))
		case 3:
			return fastpubsub.Snooze(time.Hour)
		case 4:
			panic("oh")
		}
		return nil
	}, fastpubsub.ReceiveOptions{})
	waitFor(t, "all messages", func() bool { return all.messages() == len(ids) })
	if err := r.end(); err != nil {
		t.Error(err)
	}
	for id, n := range all.n {
		if n != 1 {
			t.Errorf("message %v was delivered %d times", id, n)
		}
	}
	want := fastpubsub.Metrics{Acked: 1800, DeadLetters: 300, Available: 900, Delayed: 900}
	if diff := cmp.Diff(want, s.metrics()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	letters, err := s.broker.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{})
	if err != nil || len(letters) == 0 || letters[0].LastError != "never" {
		t.Errorf("dead letters %+v, %v", letters, err)
	}
}

// What was taken ahead is given back at the end without counting, and a request that waits ends at once.
func TestReceiveGivesBack(t *testing.T) {
	checkLeaks(t)
	s, _ := newServer(t, false)
	s.fill(200, fastpubsub.SubscriptionSettings{})
	c := s.client(client.Options{})
	var begun atomic.Int32
	goOn := make(chan struct{})
	r := receive(t, c, func(context.Context, fastpubsub.Message) error {
		begun.Add(1)
		<-goOn
		return nil
	}, fastpubsub.ReceiveOptions{Concurrency: 2})
	waitFor(t, "two handlers", func() bool { return begun.Load() == 2 })
	r.stop()
	close(goOn)
	if err := r.ended(); err != nil {
		t.Error(err)
	}
	n := int64(begun.Load())
	if diff := cmp.Diff(fastpubsub.Metrics{Acked: n, Available: 200 - n}, s.metrics()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	rest, err := c.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "c", Max: 100, Wait: 10 * time.Second})
	if err != nil || len(rest) == 0 {
		t.Fatalf("%v, %v", rest, err)
	}
	for _, msg := range rest {
		if msg.DeliveryAttempts != 1 {
			t.Errorf("attempt %d of what was given back", msg.DeliveryAttempts)
		}
	}

	all := make([]fastpubsub.ID, 0, 200)
	for len(rest) > 0 {
		for _, msg := range rest {
			all = append(all, msg.ID)
		}
		if rest, err = c.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "c", Max: 100}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Ack(t.Context(), "s", all); err != nil {
		t.Fatal(err)
	}
	var handled atomic.Int32
	r = receive(t, c, func(context.Context, fastpubsub.Message) error { handled.Add(1); return nil }, fastpubsub.ReceiveOptions{})
	for i := range int32(3) { // each wakes a request that waits
		if _, err := s.broker.Publish(t.Context(), "t", numbered(0, 1)...); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "a message", func() bool { return handled.Load() == i+1 })
	}
	began := time.Now()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second { // it would wait for 15
		t.Errorf("the end took %v", took)
	}
}

// A handler that works for longer than the ack deadline keeps its message.
func TestReceiveExtends(t *testing.T) {
	checkLeaks(t)
	s, _ := newServer(t, false)
	s.fill(1, fastpubsub.SubscriptionSettings{AckDeadline: 2 * time.Second})
	c := s.client(client.Options{})
	var begun atomic.Int32
	goOn := make(chan struct{})
	handle := func(ctx context.Context, _ fastpubsub.Message) error {
		begun.Add(1)
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	r, other := receive(t, c, handle, fastpubsub.ReceiveOptions{}), receive(t, c, handle, fastpubsub.ReceiveOptions{})
	waitFor(t, "a handler", func() bool { return begun.Load() == 1 })
	until := time.Now().Add(5 * time.Second)
	waitFor(t, "more than two ack deadlines", func() bool { return time.Now().After(until) })
	close(goOn)
	if err := errors.Join(r.end(), other.end()); err != nil || begun.Load() != 1 {
		t.Errorf("%d deliveries, %v", begun.Load(), err)
	}
	if diff := cmp.Diff(fastpubsub.Metrics{Acked: 1}, s.metrics()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// Receive goes on when the server, or the database beneath it, goes away and comes back.
func TestReceiveSurvives(t *testing.T) {
	checkLeaks(t)
	for name, disturb := range map[string]func(t *testing.T, s *server, db *storetest.DB){
		"connections cut": func(t *testing.T, s *server, _ *storetest.DB) { s.kill(); s.start() },
		"a restart":       func(t *testing.T, s *server, _ *storetest.DB) { s.stop(); s.start() },
		"connections of the database cut": func(t *testing.T, _ *server, db *storetest.DB) {
			conn, err := pgx.Connect(t.Context(), db.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			if _, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`, db.Schema); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, db := newServer(t, false)
			ids := s.fill(2000, fastpubsub.SubscriptionSettings{AckDeadline: 3 * time.Second, MaxDeliveryAttempts: 1000})
			c := s.client(client.Options{})
			var all seen
			r := receive(t, c, func(ctx context.Context, msg fastpubsub.Message) error {
				all.add(msg.ID)
				return nil
			}, fastpubsub.ReceiveOptions{})
			for i := range 5 {
				waitFor(t, "some messages", func() bool { return all.messages() >= 200*i })
				disturb(t, s, db)
			}
			waitFor(t, "all messages", func() bool { return all.messages() == len(ids) })
			waitFor(t, "all acks", func() bool { // of which some connections were cut
				m, err := s.broker.Metrics(t.Context(), "s")
				return err == nil && m.Acked == int64(len(ids))
			})
			// It waits now; that is disturbed, too.
			disturb(t, s, db)
			waitFor(t, "a publish", func() bool {
				_, err := s.broker.Publish(t.Context(), "t", numbered(0, 10)...)
				return err == nil
			})
			waitFor(t, "messages published later", func() bool { return all.messages() >= len(ids)+10 })
			if err := r.end(); err != nil {
				t.Error(err)
			}
			c.CloseIdleConnections()
		})
	}
}

// It goes on after PostgreSQL itself was killed and came back.
func TestReceiveDatabaseRestart(t *testing.T) {
	checkLeaks(t)
	postgres, db := storetest.NewServer(t, nil)
	s := serve(t, db, false)
	ids := s.fill(1000, fastpubsub.SubscriptionSettings{AckDeadline: 3 * time.Second, MaxDeliveryAttempts: 1000})
	c := s.client(client.Options{})
	var all seen
	r := receive(t, c, func(ctx context.Context, msg fastpubsub.Message) error {
		all.add(msg.ID)
		return nil
	}, fastpubsub.ReceiveOptions{Concurrency: 2})
	waitFor(t, "some messages", func() bool { return all.messages() >= 100 })
	if err := postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(t.Context()); !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), "database is down") {
		t.Errorf("without a database: %v", err)
	}
	if err := postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "all messages", func() bool { return all.messages() == len(ids) })
	waitFor(t, "all acks", func() bool {
		m, err := s.broker.Metrics(t.Context(), "s")
		return err == nil && m.Acked == int64(len(ids))
	})
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// A client that is no longer welcome is told so, by the end of Receive.
func TestReceiveRevoked(t *testing.T) {
	checkLeaks(t)
	inactive := false
	for _, test := range []struct {
		name   string
		update fastpubsub.ClientUpdate
		want   error
	}{
		{"not active", fastpubsub.ClientUpdate{Name: "c", Scopes: fastpubsub.Scopes{"*"}, Active: &inactive}, fastpubsub.ErrCredentials},
		{"other scopes", fastpubsub.ClientUpdate{Name: "c", Scopes: fastpubsub.Scopes{"topics:read"}}, fastpubsub.ErrScope},
		{"the same scopes", fastpubsub.ClientUpdate{Name: "c", Scopes: fastpubsub.Scopes{"*"}}, nil}, // there is a new token
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := newServer(t, true)
			created, options := s.credentials("*")
			s.fill(10, fastpubsub.SubscriptionSettings{AckDeadline: 4 * time.Second}) // requests wait for a second
			var handled atomic.Int32
			c := s.client(options)
			r := receive(t, c, func(context.Context, fastpubsub.Message) error { handled.Add(1); return nil }, fastpubsub.ReceiveOptions{})
			waitFor(t, "acks", func() bool { return s.metrics().Acked == 10 })
			if _, err := s.broker.UpdateClient(t.Context(), created.ID, test.update); err != nil {
				t.Fatal(err)
			}
			if test.want != nil {
				if err := r.ended(); !errors.Is(err, test.want) || strings.Contains(err.Error(), string(options.ClientSecret)) {
					t.Errorf("%v, want %v", err, test.want)
				}
			} else {
				if _, err := s.broker.Publish(t.Context(), "t", numbered(0, 10)...); err != nil {
					t.Fatal(err)
				}
				waitFor(t, "more", func() bool { return handled.Load() == 20 })
				if err := r.end(); err != nil || s.tokens.Load() != 2 {
					t.Errorf("%d tokens, %v", s.tokens.Load(), err)
				}
			}
			c.CloseIdleConnections()
		})
	}
}

// When acks are refused for good Receive ends, though there is nothing to take that would be refused, too.
func TestReceiveAcksRefused(t *testing.T) {
	checkLeaks(t)
	s, _ := newServer(t, true)
	created, options := s.credentials("*")
	s.fill(1, fastpubsub.SubscriptionSettings{})
	begun, goOn := make(chan struct{}), make(chan struct{})
	r := receive(t, s.client(options), func(context.Context, fastpubsub.Message) error {
		close(begun)
		<-goOn
		return nil
	}, fastpubsub.ReceiveOptions{})
	<-begun
	if err := s.broker.DeleteClient(t.Context(), created.ID); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if err := r.ended(); !errors.Is(err, fastpubsub.ErrCredentials) || !strings.Contains(err.Error(), "1 acks and nacks were not sent") {
		t.Errorf("%v", err)
	}
}

// A subscription that is deleted ends it.
func TestReceiveDeleted(t *testing.T) {
	checkLeaks(t)
	s, _ := newServer(t, false)
	s.fill(1, fastpubsub.SubscriptionSettings{})
	c := s.client(client.Options{})
	if err := c.Receive(t.Context(), "x", func(context.Context, fastpubsub.Message) error { return nil }, fastpubsub.ReceiveOptions{}); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("%v", err)
	}
	handled := make(chan struct{})
	r := receive(t, c, func(context.Context, fastpubsub.Message) error { close(handled); return nil }, fastpubsub.ReceiveOptions{})
	<-handled
	if err := c.DeleteSubscription(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if err := r.ended(); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// A loop over the API acks what it goes on from, and gives back what it has not begun with.
func TestMessages(t *testing.T) {
	checkLeaks(t)
	s, _ := newServer(t, false)
	s.fill(500, fastpubsub.SubscriptionSettings{})
	n := 0
	for msg, err := range s.client(client.Options{}).Messages(t.Context(), "s", fastpubsub.ReceiveOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 300 {
			msg.Settle(fastpubsub.Permanent(errors.New("never")))
			break
		}
	}
	if diff := cmp.Diff(fastpubsub.Metrics{Acked: 299, DeadLetters: 1, Available: 200}, s.metrics()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
