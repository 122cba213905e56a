package client_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/client"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

var silent = slog.New(slog.DiscardHandler)

// A server is the API at an address that stays the same when it is stopped and started.
type server struct {
	t       *testing.T
	broker  *fastpubsub.Broker
	config  httpapi.Config
	address string
	tokens  atomic.Int32 // requests for such

	http  *http.Server
	ended chan error
}

// newServer returns a running server on a schema of its own, whose callers need tokens or do not.
func newServer(t *testing.T, authenticate bool) (*server, *storetest.DB) {
	t.Helper()
	db := storetest.New(t, func(c *pgxpool.Config) { c.MaxConns = 10 })
	return serve(t, db, authenticate), db
}

func serve(t *testing.T, db *storetest.DB, authenticate bool) *server {
	t.Helper()
	config := fastpubsub.Config{Schema: db.Schema, Logger: silent}
	if authenticate {
		config.Tokens.Key = fastpubsub.NewSecret()
	}
	b, err := fastpubsub.New(db.Pool, config)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, broker: b, config: httpapi.Config{Logger: silent, Authenticate: authenticate}, address: "127.0.0.1:0"}
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	s.t.Helper()
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.address = listener.Addr().String()
	api := httpapi.New(s.broker, s.config)
	s.http = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/oauth/token" {
			s.tokens.Add(1)
		}
		api.ServeHTTP(w, r)
	})}
	s.http.RegisterOnShutdown(api.EndWaits)
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.http.Serve(listener) }()
}

// stop ends it in the orderly way.
func (s *server) stop() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.t.Error(err)
	}
	<-s.ended
	s.http = nil
}

// kill cuts all connections.
func (s *server) kill() {
	if s.http == nil {
		return
	}
	s.http.Close()
	<-s.ended
	s.http = nil
}

// client returns a Client of the server, which has ended when the test has.
func (s *server) client(options client.Options) *client.Client {
	s.t.Helper()
	if options.Logger == nil {
		options.Logger = silent
	}
	c, err := client.New("http://"+s.address, options)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.CloseIdleConnections)
	return c
}

// credentials creates a client of the API with scopes.
func (s *server) credentials(scopes ...string) (fastpubsub.Client, client.Options) {
	s.t.Helper()
	created, secret, err := s.broker.CreateClient(s.t.Context(), fastpubsub.NewClient{Name: "test", Scopes: scopes})
	if err != nil {
		s.t.Fatal(err)
	}
	return created, client.Options{ClientID: created.ID.String(), ClientSecret: secret}
}

// fill creates a topic "t" with n messages and a subscription "s".
func (s *server) fill(n int, settings fastpubsub.SubscriptionSettings) []fastpubsub.ID {
	s.t.Helper()
	ctx := s.t.Context()
	if _, err := s.broker.CreateTopic(ctx, "t"); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "s", TopicID: "t", SubscriptionSettings: settings}); err != nil {
		s.t.Fatal(err)
	}
	if n == 0 {
		return nil
	}
	ids, err := s.broker.Publish(ctx, "t", numbered(0, n)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return ids
}

// numbered returns n messages {"n": from}, {"n": from+1} and so on.
func numbered(from, n int) []fastpubsub.NewMessage {
	msgs := make([]fastpubsub.NewMessage, n)
	for i := range msgs {
		msgs[i].Payload = fmt.Appendf(nil, `{"n":%d}`, from+i)
	}
	return msgs
}

// metrics are the counts of "s", but for the age.
func (s *server) metrics() fastpubsub.Metrics {
	s.t.Helper()
	m, err := s.broker.Metrics(s.t.Context(), "s")
	if err != nil {
		s.t.Fatal(err)
	}
	m.OldestUnackedAge = 0
	return m
}

// waitFor polls until ok returns true.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// checkLeaks makes the test fail if goroutines of the client, or of a receiver, go on after it. It is for tests that are not
// parallel.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		deadline := time.Now().Add(time.Minute)
		for {
			leaked := clientGoroutines()
			if len(leaked) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d goroutines go on, the first:\n%s", len(leaked), leaked[0])
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

func clientGoroutines() [][]byte {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var all [][]byte
	for stack := range bytes.SplitSeq(buf, []byte("\n\n")) {
		if bytes.Contains(stack, []byte("testing.tRunner(")) {
			continue // a test that waits until those that are not parallel have ended
		}
		for _, ours := range []string{"fastpubsub/client.", "fastpubsub.(*receiver)", "fastpubsub.MessagesFrom", "http.(*persistConn)"} {
			if bytes.Contains(stack, []byte(ours)) {
				all = append(all, stack)
				break
			}
		}
	}
	return all
}
