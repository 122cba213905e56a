package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

const (
	ready = `200 {"status":"ready"}`
	down  = `503 {"detail":"database is down"}`
)

// ask returns the status and the body of an answer.
func ask(ctx context.Context, method, url, body string) string {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(answer.StatusCode, " ", string(text))
}

// Readiness is about the database, not about how many requests are waiting for it.
func TestReadyWhileAllConnectionsAreInUse(t *testing.T) {
	t.Parallel()
	_, db := subscribed(t, fastpubsub.SubscriptionSettings{})
	config := db.Pool.Config()
	config.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	url, stop := start(t, pool, db.Schema, io.Discard)
	for range config.MaxConns {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
	defer stop() // before the connections are given back
	waiting := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { waiting <- ask(ctx, http.MethodGet, url+"/topics", "") }()
	for pool.Stat().EmptyAcquireWaitTime() == 0 && pool.Stat().AcquiredConns() < 2 {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		if got := ask(t.Context(), http.MethodGet, url+"/readiness", ""); got != ready {
			t.Errorf("readiness: %s, want %s", got, ready)
		}
	}
	select {
	case got := <-waiting:
		t.Errorf("a request had a connection: %s", got)
	default:
	}
	cancel()
	<-waiting
}

// A database that takes connections and says nothing is down, which is said in time.
func TestReadinessOfDatabaseThatHangs(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	pool, err := pgxpool.New(t.Context(), "postgres://u@"+silent.Addr().String()+"/d?sslmode=disable&connect_timeout=5")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	url, _ := start(t, pool, fastpubsub.DefaultSchema, io.Discard)
	begun := time.Now()
	answers := make(chan string, 20)
	for range cap(answers) {
		go func() { answers <- ask(t.Context(), http.MethodGet, url+"/readiness", "") }()
	}
	for range cap(answers) {
		if got := <-answers; got != down {
			t.Errorf("readiness: %s, want %s", got, down)
		}
	}
	// Nothing but the limit ends it. It is 2 seconds; a machine that is busy may be late.
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if got := ask(t.Context(), http.MethodGet, url+"/liveness", ""); got != `200 {"status":"alive"}` {
		t.Errorf("liveness: %s", got)
	}
}

// PostgreSQL is killed while requests are waiting for it. They are told so, and when it is back everything goes on.
func TestDatabaseKilled(t *testing.T) {
	t.Parallel()
	database, db := storetest.NewServer(t, nil)
	config := db.Pool.Config()
	config.MaxConns = 10
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	url, _ := start(t, pool, db.Schema, io.Discard)
	for _, setup := range [][2]string{
		{"/topics", `{"id":"t"}`},
		{"/subscriptions", `{"id":"s","topic_id":"t"}`},
	} {
		if got := ask(t.Context(), http.MethodPost, url+setup[0], setup[1]); got[:3] != "201" {
			t.Fatal(got)
		}
	}
	if got := ask(t.Context(), http.MethodGet, url+"/readiness", ""); got != ready {
		t.Fatalf("readiness: %s", got)
	}
	for _, signal := range []string{"first", "second"} {
		t.Run(signal, func(t *testing.T) {
			holder, err := pgx.Connect(t.Context(), db.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Close(context.Background())
			if _, err := holder.Exec(t.Context(), db.SQL("BEGIN; LOCK TABLE {schema}.topics IN ACCESS EXCLUSIVE MODE")); err != nil {
				t.Fatal(err)
			}
			begun := pool.Stat().AcquireCount()
			requests := [][3]string{
				{http.MethodPost, "/topics/t/messages", `[{}]`},
				{http.MethodPost, "/topics/t/messages", `[{}]`}, // these two may share a statement
				{http.MethodPost, "/topics/t/messages", `[{}]`},
				{http.MethodGet, "/topics/t", ""},
				{http.MethodDelete, "/topics/t", ""},
				{http.MethodPost, "/subscriptions", `{"id":"s2","topic_id":"t"}`},
				{http.MethodGet, "/subscriptions/s/messages?consumer_id=w&wait_seconds=30", ""},
			}
			answers := make(chan string, len(requests))
			for _, r := range requests {
				go func() { answers <- r[0] + " " + r[1] + ": " + ask(t.Context(), r[0], url+r[1], r[2]) }()
			}
			// The publishers share a connection, or have two, and the consumer has none most of the time.
			for pool.Stat().AcquiredConns() < 4 || pool.Stat().AcquireCount() < begun+5 {
				select {
				case got := <-answers:
					t.Fatalf("an answer too early: %s", got)
				case <-time.After(time.Millisecond):
				}
			}
			if err := database.Kill(); err != nil {
				t.Fatal(err)
			}
			for range requests {
				if got := <-answers; !strings.HasSuffix(got, ": "+down) {
					t.Errorf("%s, want %s", got, down)
				}
			}
			if got := ask(t.Context(), http.MethodGet, url+"/readiness", ""); got != down {
				t.Errorf("readiness: %s, want %s", got, down)
			}
			if err := database.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := ask(t.Context(), http.MethodGet, url+"/readiness", ""); got != ready {
				t.Errorf("readiness: %s, want %s", got, ready)
			}
			if got := ask(t.Context(), http.MethodPost, url+"/topics/t/messages", `[{}]`); got != "204 " {
				t.Errorf("publish: %s, want 204", got)
			}
			// What was just published, which is all: the others never got their lock. A claim is forgotten by the next crash, an
			// ack is not.
			got := ask(t.Context(), http.MethodGet, url+"/subscriptions/s/messages?consumer_id=w&wait_seconds=30", "")
			if strings.Count(got, `{"id":"`) != 1 {
				t.Fatalf("consumed %s, want one message", got)
			}
			_, id, _ := strings.Cut(got, `{"id":"`)
			if got := ask(t.Context(), http.MethodPost, url+"/subscriptions/s/acks", `["`+id[:36]+`"]`); got != "204 " {
				t.Errorf("ack: %s, want 204", got)
			}
		})
	}
}
