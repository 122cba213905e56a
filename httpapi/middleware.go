package httpapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"github.com/julienschmidt/httprouter"

	"github.com/fastpubsub/fastpubsub"
)

// chain puts the middleware around a handler. Recover is inside the log, so that the log has the answer to a panic.
func (a *API) chain(h http.Handler) http.Handler {
	return a.requestID(a.log(a.recover(h)))
}

// A requestInfo is what is known about a request besides what the client sent.
type requestInfo struct {
	id     string
	route  string            // its pattern; empty if there is none for the path
	path   string            // the pattern as metrics and the documentation have it
	params httprouter.Params // of the path
	err    error             // the cause of an answer above 499, or of a refused token

	caller fastpubsub.Caller // by its token; without a ClientID, one who may do everything where no token is needed
}

type infoKey struct{}

func infoOf(r *http.Request) *requestInfo { return r.Context().Value(infoKey{}).(*requestInfo) }

const requestIDHeader = "X-Request-Id"

// requestID gives the request an id, its own if it sent one, and the answer the same.
func (a *API) requestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(requestIDHeader)
		if !isRequestID(id) {
			id = uuid.NewString()
		}
		w.Header().Set(requestIDHeader, id)
		if r.TransferEncoding != nil {
			// It may have had a Content-Length too, by which a proxy sees another request in what comes next.
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), infoKey{}, &requestInfo{id: id, path: otherLabel})))
	})
}

// isRequestID reports whether an id may be repeated in headers and logs: up to 128 visible ASCII characters without
// quotes and backslashes.
func isRequestID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' || c == '"' || c == '\'' || c == '\\' {
			return false
		}
	}
	return true
}

// log writes a line for each answer, and counts it.
func (a *API) log(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		answer := &answerWriter{ResponseWriter: w}
		defer func() {
			took := time.Since(start)
			info := infoOf(r)
			a.requests.observe(r.Method, info.path, answer.status, took)
			level := slog.LevelDebug
			switch {
			case answer.status == http.StatusInternalServerError:
				level = slog.LevelError
			case answer.status > http.StatusInternalServerError:
				level = slog.LevelWarn
			}
			if !a.config.Logger.Enabled(r.Context(), level) {
				return
			}
			attrs := []slog.Attr{
				slog.String("request_id", info.id),
				slog.String("method", r.Method),
				slog.String("path", r.URL.Path),
				slog.String("route", info.route),
				slog.Int("status", answer.status),
				slog.Int("bytes", answer.bytes),
				slog.Duration("duration", took),
			}
			if info.caller.ClientID != uuid.Nil {
				attrs = append(attrs, slog.String("client_id", info.caller.ClientID.String()))
			}
			if info.err != nil {
				attrs = append(attrs, slog.Any("error", info.err))
			}
			a.config.Logger.LogAttrs(r.Context(), level, "request", attrs...)
		}()
		next.ServeHTTP(answer, r)
	})
}

// An answerWriter remembers the status and size of an answer.
type answerWriter struct {
	http.ResponseWriter
	status int // 0 while nothing is written
	bytes  int
}

func (w *answerWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += n
	return n, err
}

// Unwrap is for [http.ResponseController].
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// recover answers 500 to a request whose handler panics.
func (a *API) recover(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { // the server's own signal
				panic(v)
			}
			err := fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			infoOf(r).err = err
			if answer, ok := w.(*answerWriter); ok && answer.status != 0 {
				panic(http.ErrAbortHandler) // too late for another answer: let the client see that this one is cut off
			}
			a.failUnexpected(w, r, err)
		}()
		next.ServeHTTP(w, r)
	})
}
