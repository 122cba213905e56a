package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/client"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// fake returns a Client whose requests go to a handler without a network, so that time can be a bubble's.
func fake(t *testing.T, options client.Options, handler http.HandlerFunc) *client.Client {
	t.Helper()
	return over(t, options, func(r *http.Request) (*http.Response, error) {
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		w := httptest.NewRecorder()
		if r.Body == nil {
			r.Body = http.NoBody
		}
		r.Host = r.URL.Host
		handler(w, r)
		return w.Result(), nil
	})
}

func over(t *testing.T, options client.Options, send roundTripper) *client.Client {
	t.Helper()
	options.HTTPClient = &http.Client{Transport: send}
	options.Logger = silent
	c, err := client.New("http://pubsub.example", options)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Only what does no harm is tried again, and not before the server says so.
func TestRetries(t *testing.T) {
	t.Parallel()
	one := []fastpubsub.ID{fastpubsub.ID(uuid.New())}
	named, any := []fastpubsub.Delivery{{ID: one[0], DeliveryAttempts: 1}}, []fastpubsub.Delivery{{ID: one[0]}}
	calls := map[string]struct {
		call func(ctx context.Context, c *client.Client) error
		safe bool
	}{
		"get": {func(ctx context.Context, c *client.Client) error { _, err := c.GetTopic(ctx, "t"); return err }, true},
		"list": {func(ctx context.Context, c *client.Client) error {
			_, err := c.ListClients(ctx, fastpubsub.ListOptions{})
			return err
		}, true},
		"metrics": {func(ctx context.Context, c *client.Client) error { _, err := c.Metrics(ctx, "s"); return err }, true},
		"ack":     {func(ctx context.Context, c *client.Client) error { _, err := c.Ack(ctx, "s", one); return err }, true},
		"extend": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Extend(ctx, "s", named, time.Minute)
			return err
		}, true},
		"nack": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Nack(ctx, "s", named, fastpubsub.NackOptions{})
			return err
		}, true},
		"nack any": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Nack(ctx, "s", any, fastpubsub.NackOptions{})
			return err
		}, false},
		"nack uncounted": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Nack(ctx, "s", named, fastpubsub.NackOptions{Uncounted: true})
			return err
		}, false},
		"give back": {func(ctx context.Context, c *client.Client) error { _, err := c.Extend(ctx, "s", named, 0); return err }, false},
		"reprocess": {func(ctx context.Context, c *client.Client) error { _, err := c.Reprocess(ctx, "s", one); return err }, false},
		"publish": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Publish(ctx, "t", fastpubsub.JSON(struct{}{}))
			return err
		}, false},
		"consume": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "c"})
			return err
		}, false},
		"create": {func(ctx context.Context, c *client.Client) error { _, err := c.CreateTopic(ctx, "t"); return err }, false},
		"delete": {func(ctx context.Context, c *client.Client) error { return c.DeleteSubscription(ctx, "s") }, false},
	}
	failures := map[string]struct {
		send roundTripper
		wait time.Duration // at least, before another try
		all  bool          // calls may be tried again
		none bool          // may
	}{
		"database is down": {send: func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(503)
			io.WriteString(w, `{"detail":"database is down"}`)
			return w.Result(), nil
		}, wait: 2 * time.Second},
		"a proxy's": {send: func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			w.WriteHeader(502)
			io.WriteString(w, `<html>Bad Gateway</html>`)
			return w.Result(), nil
		}},
		"cut off": {send: func(r *http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }},
		"not connected": {send: func(r *http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
		}, all: true},
		"broken": {send: func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			w.WriteHeader(500)
			io.WriteString(w, `{"detail":"Internal Server Error"}`)
			return w.Result(), nil
		}, none: true},
	}
	for failureName, failure := range failures {
		for callName, call := range calls {
			t.Run(failureName+"/"+callName, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					tries := 0
					c := over(t, client.Options{}, func(r *http.Request) (*http.Response, error) {
						tries++
						return failure.send(r)
					})
					began := time.Now()
					err := call.call(t.Context(), c)
					if errors.Is(err, client.ErrUnavailable) == failure.none || err == nil {
						t.Errorf("error %v", err)
					}
					want := 1
					if (call.safe || failure.all) && !failure.none {
						want = 3
					}
					if took := time.Since(began); tries != want || took < time.Duration(want-1)*failure.wait || took > 5*time.Second {
						t.Errorf("%d tries in %v, want %d", tries, took, want)
					}
				})
			})
		}
	}
	t.Run("ends with ctx", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			c := over(t, client.Options{}, failures["database is down"].send)
			var e *client.Error
			if _, err := c.GetTopic(ctx, "t"); !errors.As(err, &e) || e.RetryAfter != 2*time.Second || time.Since(began) != time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
		})
	})
}

// busyBroker is held by others all the time.
type busyBroker struct{ httpapi.Broker }

func (busyBroker) Consume(context.Context, string, fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
	return nil, fmt.Errorf("consume: %w", fastpubsub.ErrBusy)
}

// ErrBusy comes through, and is one of those after which trying again helps.
func TestBusy(t *testing.T) {
	t.Parallel()
	api := httpapi.New(busyBroker{}, httpapi.Config{Logger: silent})
	c := fake(t, client.Options{}, api.ServeHTTP)
	_, err := c.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "c"})
	var e *client.Error
	if !errors.Is(err, fastpubsub.ErrBusy) || !errors.Is(err, client.ErrUnavailable) || !errors.As(err, &e) || e.RetryAfter != time.Second {
		t.Errorf("%v", err)
	}
}

const fakeToken = `{"access_token":"%s","token_type":"Bearer","expires_in":100,"scope":"*"}`

// A token is refreshed before it expires, and one that is still good is used while no other can be had.
func TestRefresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fetched, down := 0, false
		var used []string
		c := fake(t, client.Options{ClientID: "a", ClientSecret: "b"}, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/oauth/token" && down:
				w.WriteHeader(503)
			case r.URL.Path == "/oauth/token":
				fetched++
				w.WriteHeader(201)
				fmt.Fprintf(w, fakeToken, fmt.Sprint("token-", fetched))
			default:
				used = append(used, r.Header.Get("Authorization"))
				io.WriteString(w, `{"id":"t"}`)
			}
		})
		get := func(wantToken string) {
			t.Helper()
			if _, err := c.GetTopic(t.Context(), "t"); err != nil {
				t.Fatal(err)
			}
			if got := used[len(used)-1]; got != "Bearer "+wantToken {
				t.Errorf("after %d tokens: %s, want %s", fetched, got, wantToken)
			}
		}
		get("token-1")
		time.Sleep(79 * time.Second)
		get("token-1")
		time.Sleep(time.Second) // a fifth of its life is left
		down = true
		get("token-1")
		down = false
		get("token-2")
		time.Sleep(100 * time.Second) // it has expired
		down = true
		if _, err := c.GetTopic(t.Context(), "t"); !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("with an old token: %v", err)
		}
	})
}

// What takes too long is the server's failure; what the caller ends is the caller's.
func TestTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := over(t, client.Options{Timeout: 10 * time.Second}, func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		began := time.Now()
		_, err := c.Publish(t.Context(), "t", fastpubsub.JSON(struct{}{}))
		if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		began = time.Now()
		_, err = c.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "c", Wait: 20 * time.Second})
		if !errors.Is(err, client.ErrUnavailable) || time.Since(began) != 30*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Ack(ctx, "s", nil); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrUnavailable) {
			t.Errorf("its own end: %v", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "c"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("its own end while it takes: %v", err)
		}
	})
}

// A wait is made of requests that the server allows, and does not spin on a server that is stopping.
func TestLongWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var waits []string
		stopping := false
		c := fake(t, client.Options{}, func(w http.ResponseWriter, r *http.Request) {
			wait := r.FormValue("wait_seconds")
			waits = append(waits, wait)
			if d, err := time.ParseDuration(wait + "s"); err == nil && !stopping {
				time.Sleep(d)
			}
			io.WriteString(w, `{"data":[]}`)
		})
		consume := func(wait time.Duration) {
			t.Helper()
			waits = nil
			began := time.Now()
			msgs, err := c.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "c", Wait: wait})
			if len(msgs) > 0 || err != nil || time.Since(began) < wait || time.Since(began) > wait+time.Second {
				t.Errorf("waited %v of %v: %v, %v", time.Since(began), wait, msgs, err)
			}
		}
		consume(75 * time.Second)
		if got := strings.Join(waits, " "); got != "30 30 15" {
			t.Errorf("waits of %s seconds", got)
		}
		consume(0)
		if got := strings.Join(waits, " "); got != "0" {
			t.Errorf("waits of %s seconds", got)
		}
		consume(100 * time.Millisecond)
		stopping = true
		consume(time.Minute)
		if len(waits) < 30 || len(waits) > 130 {
			t.Errorf("%d requests in a minute", len(waits))
		}
	})
}

// endless is an answer that does not end.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	e.read.Add(int64(len(b)))
	return len(b), nil
}

// An answer is read up to a limit, which the error names; Consume asks for less then.
func TestAnswerBytes(t *testing.T) {
	t.Parallel()
	const limit = 10_000
	endless := &endless{}
	c := over(t, client.Options{MaxAnswerBytes: limit}, func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(endless), ContentLength: -1}, nil
	})
	if _, err := c.GetTopic(t.Context(), "t"); err == nil || !strings.Contains(err.Error(), "10000 bytes") || errors.Is(err, client.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if n := endless.read.Load(); n > 10*limit {
		t.Errorf("%d bytes were read", n)
	}

	s, _ := newServer(t, false)
	s.fill(0, fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 1000, AckDeadline: time.Second})
	want := map[fastpubsub.ID]bool{}
	for range 20 {
		ids, err := s.broker.Publish(t.Context(), "t", large(1500))
		if err != nil {
			t.Fatal(err)
		}
		want[ids[0]] = true
	}
	c = s.client(client.Options{MaxAnswerBytes: limit})
	waitFor(t, "all messages", func() bool {
		msgs, err := c.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "c", Max: 20, Wait: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		for _, msg := range msgs {
			delete(want, msg.ID)
			if _, err := c.Ack(t.Context(), "s", []fastpubsub.ID{msg.ID}); err != nil {
				t.Fatal(err)
			}
		}
		return len(want) == 0
	})
}

// An answer that has begun to come when ctx ends is returned; before that the request is cancelled.
func TestConsumeEnds(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan struct{}), make(chan struct{})
	const head, tail = `{"data":[{"id":"019b6b4e-3c52-8000-8000-00000000002a","subscription_id":"s",`, `"payload":{},"delivery_attempts":1}]}`
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("consumer_id") == "waits" {
			close(begun)
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(head)+len(tail)))
		io.WriteString(w, head)
		http.NewResponseController(w).Flush()
		<-goOn
		io.WriteString(w, tail)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	first := make(chan struct{})
	c, err := client.New("http://"+listener.Addr().String(), client.Options{HTTPClient: &http.Client{
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			answer, err := http.DefaultTransport.RoundTrip(r)
			if err == nil {
				close(first) // its first byte has come
			}
			return answer, err
		})}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-first
		cancel()
		close(goOn)
	}()
	msgs, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "c", Wait: 10 * time.Second})
	if len(msgs) != 1 || err != nil {
		t.Errorf("%v, %v", msgs, err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "waits", Wait: 10 * time.Second}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
