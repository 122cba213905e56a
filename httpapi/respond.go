package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fastpubsub/fastpubsub"
)

// A problem is one thing that is wrong with a request, as an answer of 422 has it.
type problem struct {
	Type string `json:"type"`
	Loc  []any  `json:"loc"` // "body", "query" or "path", then names and indexes
	Msg  string `json:"msg"`
}

// problems is the error that a request is refused with, in the order of its fields.
type problems []problem

// maxProblems bounds an answer: a body may have a problem every few bytes. It is one for each message of the longest list.
const maxProblems = 10_000

func (p *problems) add(loc []any, kind, format string, args ...any) {
	if len(*p) >= maxProblems {
		return
	}
	*p = append(*p, problem{kind, loc, fmt.Sprintf(format, args...)})
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

func (p problems) Error() string { return strconv.Itoa(len(p)) + " problems" }

// A statusError is an answer by its status and text.
type statusError struct {
	status int
	detail string
}

func (e *statusError) Error() string { return e.detail }

var errNoSuchID = fmt.Errorf("not an id: %w", fastpubsub.ErrNotFound)

const (
	textDatabaseDown   = "database is down"
	textSchemaOutdated = "database schema is out of date: run db-migrate"
	textBinaryOutdated = "database schema is newer than this server: upgrade the server"
	textReadOnly       = "database is read-only"
	textRestored       = "messages were copied here from another database: run fastpubsub repair"
)

// statusClientGone is logged for a request whose client did not wait for the answer; nobody sees it.
const statusClientGone = 499

// errorTable says how the errors of a broker are answered. {resource} and {Resource} stand for the route's.
var errorTable = []struct {
	is     func(error) bool
	status int
	detail string
}{
	{is(fastpubsub.ErrNotFound), http.StatusNotFound, "{Resource} not found"},
	{is(fastpubsub.ErrExists), http.StatusConflict, "This {resource} already exists"},
	{isBusy, http.StatusServiceUnavailable, "The {resource} is busy, try again"},
	{is(fastpubsub.ErrSchemaOutdated), http.StatusServiceUnavailable, textSchemaOutdated},
	{is(fastpubsub.ErrBinaryOutdated), http.StatusServiceUnavailable, textBinaryOutdated},
	{is(fastpubsub.ErrRestored), http.StatusServiceUnavailable, textRestored},
	{isDown, http.StatusServiceUnavailable, textDatabaseDown},
	{isReadOnly, http.StatusServiceUnavailable, textReadOnly},
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

// isBusy reports whether err means that others are in the way for now.
func isBusy(err error) bool {
	if errors.Is(err, fastpubsub.ErrBusy) {
		return true
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "55P03", "57014", "40P01", "40001": // lock_not_available; query_canceled, by statement_timeout; deadlock_detected; serialization_failure
			return true
		}
	}
	return false
}

// isDown reports whether err means that there is no working connection to the database.
func isDown(err error) bool {
	var connectErr *pgconn.ConnectError
	var pgErr *pgconn.PgError
	var netErr net.Error
	switch {
	case errors.As(err, &connectErr):
		return true
	case errors.As(err, &pgErr):
		switch pgErr.Code {
		case "53300", "57P01", "57P02", "57P03": // too_many_connections; admin_shutdown, crash_shutdown, cannot_connect_now
			return true
		}
		return strings.HasPrefix(pgErr.Code, "08") // connection exceptions
	}
	return errors.As(err, &netErr) || errors.Is(err, net.ErrClosed) || errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// isReadOnly reports whether err means that the database is a standby, or somebody lets nobody write to it: until it is promoted, or
// whoever did that is done.
func isReadOnly(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "25006" // read_only_sql_transaction
}

// fail answers with an error. The cause of an answer above 499 is for the log alone.
func (a *API) fail(w http.ResponseWriter, r *http.Request, rt route, err error) {
	var refused problems
	var invalid *fastpubsub.InvalidError
	var known *statusError
	switch {
	case errors.As(err, &refused):
		writeJSON(w, http.StatusUnprocessableEntity, map[string]problems{"detail": refused})
		return
	case errors.As(err, &invalid):
		refused = located(invalid, "body")
		if rt.method == http.MethodGet {
			refused = located(invalid, "query")
		}
		writeJSON(w, http.StatusUnprocessableEntity, map[string]problems{"detail": refused})
		return
	case errors.As(err, &known):
		writeDetail(w, known.status, known.detail)
		return
	case r.Context().Err() != nil: // whatever it became on its way
		w.WriteHeader(statusClientGone)
		return
	}
	for _, row := range errorTable {
		if !row.is(err) {
			continue
		}
		if row.status >= http.StatusInternalServerError {
			infoOf(r).err = err
			w.Header().Set("Retry-After", "1")
		}
		detail := strings.ReplaceAll(row.detail, "{resource}", rt.resource)
		if rt.resource != "" {
			detail = strings.ReplaceAll(detail, "{Resource}", strings.ToUpper(rt.resource[:1])+rt.resource[1:])
		}
		writeDetail(w, row.status, detail)
		return
	}
	a.failUnexpected(w, r, err)
}

// failUnexpected answers 500, whose cause is for the log alone, unless this is for debugging.
func (a *API) failUnexpected(w http.ResponseWriter, r *http.Request, err error) {
	infoOf(r).err = err
	answer := map[string]string{"detail": "Internal Server Error"}
	if a.config.Debug {
		answer["cause"] = err.Error()
	}
	writeJSON(w, http.StatusInternalServerError, answer)
}

// located turns a broker's problems into those of a request's body or query. Parts of a field are between dots.
func located(invalid *fastpubsub.InvalidError, place string) problems {
	all := make(problems, len(invalid.Problems))
	for i, p := range invalid.Problems {
		loc := []any{place}
		for part := range strings.SplitSeq(p.Field, ".") {
			if n, err := strconv.Atoi(part); err == nil {
				loc = append(loc, n)
			} else {
				loc = append(loc, part)
			}
		}
		all[i] = problem{p.Type, loc, p.Msg}
	}
	return all
}

// A list is the wire form of several things.
type list[T any] struct {
	Data []T `json:"data"`
}

// listOf converts each element to its wire form. An empty list is [].
func listOf[T, W any](all []T, wire func(T) W) list[W] {
	data := make([]W, len(all))
	for i, v := range all {
		data[i] = wire(v)
	}
	return list[W]{data}
}

func writeDetail(w http.ResponseWriter, status int, detail string) {
	writeJSON(w, status, map[string]string{"detail": detail})
}

// writeJSON answers with a value that can be marshalled; it panics otherwise.
func writeJSON(w http.ResponseWriter, status int, v any) {
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		panic(fmt.Errorf("encode answer: %w", err))
	}
	writeText(w, status, bytes.TrimSuffix(buf.Bytes(), []byte{'\n'}))
}

// writeText answers with JSON text. An error means that the client is gone.
func writeText(w http.ResponseWriter, status int, text []byte) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, err := w.Write(text)
	return err
}

// wantsRepresentation reports whether the request prefers a body to an empty answer (RFC 7240), and if so notes in the
// answer that it gets one.
func wantsRepresentation(w http.ResponseWriter, r *http.Request) bool {
	for _, line := range r.Header["Prefer"] {
		for preference := range strings.SplitSeq(line, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if strings.EqualFold(strings.TrimSpace(name), "return") {
				wanted := strings.EqualFold(strings.Trim(strings.TrimSpace(value), `"`), "representation")
				if wanted {
					w.Header().Set("Preference-Applied", "return=representation")
				}
				return wanted // the first counts
			}
		}
	}
	return false
}
