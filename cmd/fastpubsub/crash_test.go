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
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
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
	crashtest.ExitWithParent()
	if code := run(&process{t.Context(), os.Stdin, os.Stdout, os.Stderr}, []string{"server"}); code != exitOK {
		t.Fatalf("exit code %d", code)
	}
}

// waitReady waits until the server at url, which is a child, is ready.
func waitReady(ctx context.Context, server *crashtest.Child, url string) error {
	for {
		answer, err := get(ctx, url+"/readiness")
		if err == nil && answer[:3] == "200" {
			return nil
		}
		select {
		case <-server.Ended():
			_, output := server.Outcome()
			return fmt.Errorf("the server ended: %s", output)
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready: %s, %w", answer, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// clients are the load of a server.
type clients struct {
	url       string
	ledger    crashtest.Memory
	next      atomic.Int64 // number of a message
	sent      atomic.Int64 // messages published in this round
	stepped   atomic.Int64 // steps of consumers in this round
	killing   atomic.Bool  // the server is being killed, or soon will be
	clockMu   sync.Mutex   // lets one client move the clock
	clock     *storetest.Clock
	transport http.Transport
}

func (c *clients) record() crashtest.Recorder { return c.ledger.Add }

// message is a message as a client gets it.
type message struct {
	ID       fastpubsub.ID   `json:"id"`
	Payload  json.RawMessage `json:"payload"`
	Attempts int             `json:"delivery_attempts"`
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
func (c *clients) publish(ctx context.Context, name string) error {
	for {
		for c.sent.Load() > 50+5*c.stepped.Load() && !c.killing.Load() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		n := 1 + int(c.next.Load()%5)
		from := int(c.next.Add(int64(n))) - n
		err := c.record().PublishBy(crashtest.Topic, name, from, n, func(msgs []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
			payloads := make([]json.RawMessage, len(msgs))
			for i, m := range msgs {
				payloads[i] = m.Payload
			}
			var answer struct{ IDs []fastpubsub.ID }
			err := c.call(ctx, http.MethodPost, "/topics/t/messages", payloads, http.StatusCreated, &answer)
			return answer.IDs, err
		})
		if err != nil {
			if again, err := c.again(err); !again {
				return err
			}
			continue
		}
		c.sent.Add(int64(n))
	}
}

// consume goes on until the server is gone. It acks most of what it gets, nacks some and forgets the rest, and moves the
// clock.
func (c *clients) consume(ctx context.Context, name string, rng *rand.Rand) error {
	for {
		err := c.step(ctx, name, rng)
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

func (c *clients) step(ctx context.Context, name string, rng *rand.Rand) error {
	path := fmt.Sprintf("/subscriptions/s/messages?consumer_id=c&batch_size=%d&ack_deadline_seconds=%d", 1+rng.IntN(10), 1+rng.IntN(2))
	var msgs []crashtest.Message
	err := c.record().Do(crashtest.Entry{Caller: name, Call: crashtest.Consume, Subscription: crashtest.Subscription}, func() ([]crashtest.Message, int, error) {
		var got struct{ Data []message }
		if err := c.call(ctx, http.MethodGet, path, nil, http.StatusOK, &got); err != nil {
			return nil, 0, err
		}
		for _, m := range got.Data {
			msgs = append(msgs, crashtest.Received(m.ID, m.Payload, m.Attempts))
		}
		return msgs, len(msgs), nil
	})
	if err != nil {
		return err
	}
	var acks, nacks []crashtest.Message
	for _, m := range msgs {
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
			err = c.end(ctx, name, crashtest.Ack, "acks", acks)
		case i == 1 && len(nacks) > 0:
			err = c.end(ctx, name, crashtest.Nack, "nacks", nacks)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// end acks or nacks messages.
func (c *clients) end(ctx context.Context, name string, call crashtest.Call, route string, msgs []crashtest.Message) error {
	return c.record().Change(call, crashtest.Subscription, name, msgs, func() (int, error) {
		var answer struct{ Count int }
		err := c.call(ctx, http.MethodPost, "/subscriptions/s/"+route, crashtest.IDs(msgs), http.StatusOK, &answer)
		return answer.Count, err
	})
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
	crashtest.Create(t, b)

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
		serverEnv + "=1",
		"FASTPUBSUB_DATABASE_URL=" + database.String(), "FASTPUBSUB_DATABASE_SCHEMA=" + db.Schema,
		"FASTPUBSUB_API_HOST=127.0.0.1", "FASTPUBSUB_API_PORT=" + strconv.Itoa(port), "FASTPUBSUB_LOG_LEVEL=warning",
	}

	c := &clients{url: "http://127.0.0.1:" + strconv.Itoa(port), clock: clock}
	defer c.transport.CloseIdleConnections()
	for range rounds {
		server := crashtest.StartChild(t, settings...)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := waitReady(ctx, server, c.url); err != nil {
			t.Fatal(err)
		}
		c.killing.Store(false)
		c.sent.Store(0)
		c.stepped.Store(0)
		g, loaded := errgroup.WithContext(ctx)
		for i := range 3 {
			rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
			g.Go(func() error { return c.publish(ctx, fmt.Sprint("publisher ", i)) })
			g.Go(func() error { return c.consume(ctx, fmt.Sprint("consumer ", i), rng) })
		}
		sent, steps := 50+rng.Int64N(200), 20+rng.Int64N(60)
		for (c.sent.Load() < sent || c.stepped.Load() < steps) && loaded.Err() == nil {
			time.Sleep(time.Millisecond) // the load decides, not the clock
		}
		c.killing.Store(true)
		killErr := server.Kill()
		if err := errors.Join(killErr, g.Wait()); err != nil {
			t.Fatal(err)
		}
		crashtest.WaitForBackends(t, db, name)
	}
	if err := crashtest.Audit(t, b, clock, c.ledger.Entries()).Err; err != nil {
		t.Error(err)
	}
}
