package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

var silent = slog.New(slog.DiscardHandler)

type header map[string]string

func do(h http.Handler, method, target, body string, headers header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://api"+target, strings.NewReader(body))
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// What a broker returns, as clients see it.
func TestBrokerErrors(t *testing.T) {
	t.Parallel()
	const down, internal = `{"detail":"database is down"}`, `{"detail":"Internal Server Error"}`
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	for _, test := range []struct {
		reason string
		err    error
		status int
		want   string
	}{
		{"not found", fastpubsub.ErrNotFound, 404, noTopic},
		{"busy", fastpubsub.ErrBusy, 503, `{"detail":"The topic is busy, try again"}`},
		{"a lock that is held", &pgconn.PgError{Code: "55P03"}, 503, `{"detail":"The topic is busy, try again"}`},
		{"statement_timeout", &pgconn.PgError{Code: "57014"}, 503, `{"detail":"The topic is busy, try again"}`},
		{"took too long", context.DeadlineExceeded, 503, down},
		{"not migrated", errors.Join(fastpubsub.ErrSchemaOutdated, &pgconn.PgError{Code: "42P01"}), 503, `{"detail":"database schema is out of date: run db-migrate"}`},
		{"migrated by a newer release", fastpubsub.ErrBinaryOutdated, 503, `{"detail":"database schema is newer than this server: upgrade the server"}`},
		{"copied from elsewhere", fastpubsub.ErrRestored, 503, `{"detail":"messages were copied here from another database: run fastpubsub repair"}`},
		{"refused", refused, 503, down},
		{"cut off", io.ErrUnexpectedEOF, 503, down},
		{"shut down", &pgconn.PgError{Code: "57P01"}, 503, down},
		{"too many connections", &pgconn.PgError{Code: "53300"}, 503, down},
		{"a standby", &pgconn.PgError{Code: "25006"}, 503, `{"detail":"database is read-only"}`},
		{"connection exception", &pgconn.PgError{Code: "08006"}, 503, down},
		{"a bug in SQL", &pgconn.PgError{Code: "42601", Message: "secret"}, 500, internal},
		{"anything", errors.New("secret"), 500, internal},
		{"canceled by the server", context.Canceled, 500, internal},
		{"several fields", &fastpubsub.InvalidError{Problems: []fastpubsub.Problem{
			{Field: "messages", Type: "too_long", Msg: "all"},
			{Field: "messages.1.payload", Type: "dict_type", Msg: "one"},
		}}, 422, `{"detail":[{"type":"too_long","loc":["body"],"msg":"all"},{"type":"dict_type","loc":["body",1],"msg":"one"}]}`},
	} {
		t.Run(test.reason, func(t *testing.T) {
			t.Parallel()
			var logged bytes.Buffer
			b := &broker{publish: func(string, []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
				return nil, fmt.Errorf("publish to %q: %w", "t", test.err)
			}}
			api := httpapi.New(b, httpapi.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
			w := do(api, "POST", "/topics/t/messages", `[{},{}]`, header{"X-Request-ID": "req-1"})
			if w.Code != test.status {
				t.Errorf("status %d, want %d", w.Code, test.status)
			}
			if diff := cmp.Diff(test.want, w.Body.String()); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if got := w.Header().Get("Retry-After"); (got == "1") != (test.status == 503) {
				t.Errorf("Retry-After %q", got)
			}
			for _, part := range []string{"request_id=req-1", "route=/topics/:id/messages", test.err.Error()} {
				if want := test.status >= 500; strings.Contains(strings.ReplaceAll(logged.String(), `\n`, "\n"), part) != want {
					t.Errorf("%q logged: %v, want %v; log: %s", part, !want, want, &logged)
				}
			}
		})
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want string
	}{
		{errors.New("secret"), `{"detail":"database is down"}`},
		{fastpubsub.ErrSchemaOutdated, `{"detail":"database schema is out of date: run db-migrate"}`},
		{fastpubsub.ErrBinaryOutdated, `{"detail":"database schema is newer than this server: upgrade the server"}`},
		{fastpubsub.ErrRestored, `{"detail":"messages were copied here from another database: run fastpubsub repair"}`},
	} {
		b := &broker{check: func(ctx context.Context) error {
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 2*time.Second {
				t.Error("the check may take more than 2 seconds")
			}
			return test.err
		}}
		w := do(httpapi.New(b, httpapi.Config{Logger: silent}), "GET", "/readiness", "", nil)
		if w.Code != 503 || w.Body.String() != test.want {
			t.Errorf("%v: %d %s, want 503 %s", test.err, w.Code, w.Body, test.want)
		}
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	api := httpapi.New(working(), httpapi.Config{Logger: silent})
	for sent, kept := range map[string]bool{
		"7b1f:a/b=c":             true,
		"":                       false,
		"with space":             false,
		`quote"`:                 false,
		"é":                      false,
		strings.Repeat("x", 129): false,
	} {
		w := do(api, "GET", "/nowhere", "", header{"X-Request-ID": sent})
		got := w.Header().Get("X-Request-ID")
		if got == "" || (got == sent) != kept {
			t.Errorf("sent %q, answered %q", sent, got)
		}
	}
}

// Causes are for the log, unless this is for debugging; then they are for the client too, but only those of an answer of 500.
func TestDebug(t *testing.T) {
	t.Parallel()
	for _, debug := range []bool{false, true} {
		var err error
		api := httpapi.New(&broker{getTopic: func(id string) (fastpubsub.Topic, error) {
			if id == "panic" {
				panic("at the disco")
			}
			return fastpubsub.Topic{}, err
		}}, httpapi.Config{Debug: debug, Logger: slog.New(slog.DiscardHandler)})
		err = errors.New("the cause")
		want := `{"detail":"Internal Server Error"}`
		if debug {
			want = `{"cause":"the cause","detail":"Internal Server Error"}`
		}
		if w := do(api, "GET", "/topics/t", "", nil); w.Code != 500 || w.Body.String() != want {
			t.Errorf("debug %t: %d %s", debug, w.Code, w.Body)
		}
		if w := do(api, "GET", "/topics/panic", "", nil); w.Code != 500 || strings.Contains(w.Body.String(), "at the disco") != debug {
			t.Errorf("debug %t: %d %s", debug, w.Code, w.Body)
		}
		err = fastpubsub.ErrNotFound
		if w := do(api, "GET", "/topics/t", "", nil); w.Code != 404 || w.Body.String() != `{"detail":"Topic not found"}` {
			t.Errorf("debug %t: %d %s", debug, w.Code, w.Body)
		}
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	api := httpapi.New(&broker{getTopic: func(string) (fastpubsub.Topic, error) { panic("secret") }},
		httpapi.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	w := do(api, "GET", "/topics/t", "", header{"X-Request-ID": "req-1"})
	if w.Code != 500 || w.Body.String() != `{"detail":"Internal Server Error"}` || w.Header().Get("X-Request-ID") != "req-1" {
		t.Errorf("answer: %d %s", w.Code, w.Body)
	}
	if got := logged.String(); !strings.Contains(got, "secret") || !strings.Contains(got, "req-1") || !strings.Contains(got, "status=500") {
		t.Errorf("log: %s", got)
	}
}

func TestEndWaits(t *testing.T) {
	t.Parallel()
	b, started := waiting()
	api := httpapi.New(b, httpapi.Config{Logger: silent})
	answers := make(chan *httptest.ResponseRecorder)
	go func() { answers <- do(api, "GET", "/subscriptions/s/messages?consumer_id=w&wait_seconds=30", "", nil) }()
	<-started
	api.EndWaits()
	api.EndWaits()
	if w := <-answers; w.Code != 200 || w.Body.String() != `{"data":[]}` {
		t.Errorf("answer: %d %s, want an empty one", w.Code, w.Body)
	}
	w := do(api, "GET", "/subscriptions/s/messages?consumer_id=w&wait_seconds=30", "", nil)
	if w.Code != 200 || w.Body.String() != `{"data":[]}` {
		t.Errorf("answer to a wait begun too late: %d %s, want an empty one", w.Code, w.Body)
	}
}

func TestClientGone(t *testing.T) {
	t.Parallel()
	b, started := waiting()
	var logged bytes.Buffer
	api := httpapi.New(b, httpapi.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := httptest.NewRequestWithContext(ctx, "GET", "/subscriptions/s/messages?consumer_id=w&wait_seconds=30", nil)
		api.ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-started
	cancel()
	<-done
	if logged.Len() > 0 {
		t.Errorf("logged: %s", &logged)
	}
}
