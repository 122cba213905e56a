package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// ErrUnavailable means that there was no answer, or that the server, or a proxy before it, cannot work now: it has said 429, 502,
// 503 or 504. Whether the call was carried out is not known. Trying again later may help; [Error].RetryAfter says when.
var ErrUnavailable = errors.New("the server is unavailable")

// An Error is a call that failed at the server, or on the way. It matches [ErrUnavailable] or an error of the package fastpubsub,
// where one fits.
type Error struct {
	Method, Path string
	Status       int           // of the answer; 0 if there was none
	Detail       string        // what the server says
	RequestID    string        // by which the server's log has it
	RetryAfter   time.Duration // 0 if the server has not said

	err error // what it is for errors.Is and As; nil for nothing
}

func (e *Error) Error() string {
	text := e.Method + " " + e.Path + ": "
	if e.Status == 0 {
		return text + e.Detail
	}
	text += strings.TrimSpace(strconv.Itoa(e.Status) + " " + http.StatusText(e.Status))
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if e.RequestID != "" {
		text += " (request " + e.RequestID + ")"
	}
	return text
}

// Unwrap is for [errors.Is] and [errors.As].
func (e *Error) Unwrap() error { return e.err }

// Is reports whether target is ErrUnavailable and e is such.
func (e *Error) Is(target error) bool {
	if target != ErrUnavailable {
		return false
	}
	switch e.Status {
	case 0, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

var errTooLarge = errors.New("the answer is too large")

// Tries and the pauses between them.
const (
	maxTries        = 3
	pauseFrom       = 100 * time.Millisecond
	longestPause    = 5 * time.Second
	maxErrorBytes   = 4 << 20 // of an answer that says what is wrong
	maxDetailBytes  = 1_000
	answerGrace     = 5 * time.Second
	userAgent       = "fastpubsub-go"
	requestIDHeader = "X-Request-Id"
)

// A request is a call of the API.
type request struct {
	method string
	path   string // escaped
	query  url.Values
	body   []byte
	wait   time.Duration // that the server is asked for
	public bool          // needs no token
	safe   bool          // may be carried out twice
	// takes means that an answer which has begun to come is worth more than an early end: messages are in it.
	takes bool
}

// call sends a request, again where that may help and do no harm, and reads the answer into what into points to, unless that is nil.
func (c *Client) call(ctx context.Context, r request, into any) error {
	pause := pauseFrom
	for try := 1; ; try++ {
		err := c.authorized(ctx, r, into)
		if err == nil || try == maxTries || ctx.Err() != nil || !mayRepeat(r, err) {
			return err
		}
		wait := pause/2 + rand.N(pause)
		if e := (*Error)(nil); errors.As(err, &e) && e.RetryAfter > 0 {
			wait += min(e.RetryAfter, longestPause)
		}
		if sleep(ctx, wait) != nil {
			return err
		}
		pause *= 2
	}
}

func mayRepeat(r request, err error) bool {
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, ErrUnavailable) {
		return false
	}
	var op *net.OpError
	notSent := e.Path == tokenPath || e.Status == 0 && errors.As(err, &op) && op.Op == "dial"
	return r.safe || notSent
}

// authorized sends a request with a token, and once more with another if that is refused.
func (c *Client) authorized(ctx context.Context, r request, into any) error {
	if r.public {
		return c.once(ctx, r, "", into)
	}
	token, err := c.token(ctx)
	if err != nil {
		return err
	}
	err = c.once(ctx, r, token, into)
	if token == "" || !errors.Is(err, fastpubsub.ErrToken) {
		return err
	}
	c.forget(token)
	if token, err = c.token(ctx); err != nil {
		return err
	}
	return c.once(ctx, r, token, into)
}

// once sends a request.
func (c *Client) once(ctx context.Context, r request, token fastpubsub.Secret, into any) error {
	began := &atomic.Bool{} // the answer has
	run, cancel := c.lifetime(ctx, r, began)
	defer cancel()
	trace := &httptrace.ClientTrace{GotFirstResponseByte: func() { began.Store(true) }}
	address := c.base + r.path
	if len(r.query) > 0 {
		address += "?" + r.query.Encode()
	}
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	sent, err := http.NewRequestWithContext(httptrace.WithClientTrace(run, trace), r.method, address, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", r.method, r.path, err)
	}
	h := sent.Header
	h.Set("User-Agent", userAgent)
	h.Set("Accept", "application/json")
	if r.body != nil {
		h.Set("Content-Type", "application/json")
		h.Set("Prefer", "return=representation")
	}
	if token != "" {
		h.Set("Authorization", "Bearer "+string(token))
	}
	answer, err := c.http.Do(sent)
	if err != nil {
		return c.noAnswer(ctx, run, r, err)
	}
	defer answer.Body.Close()
	limit := c.options.MaxAnswerBytes
	if answer.StatusCode >= http.StatusMultipleChoices {
		limit = min(limit, maxErrorBytes)
	}
	text, err := readAnswer(answer, limit)
	switch {
	case errors.Is(err, errTooLarge):
		return &Error{
			Method: r.method, Path: r.path, Status: answer.StatusCode, RequestID: answer.Header.Get(requestIDHeader),
			Detail: fmt.Sprintf("the answer has more than %d bytes", limit), err: errTooLarge,
		}
	case err != nil:
		return c.noAnswer(ctx, run, r, err)
	case answer.StatusCode >= http.StatusMultipleChoices:
		return refusal(r, answer, text)
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil { // errors of encoding/json name a place, not what is there
		return &Error{
			Method: r.method, Path: r.path, Status: answer.StatusCode, RequestID: answer.Header.Get(requestIDHeader),
			Detail: "the answer cannot be read: " + err.Error(),
		}
	}
	return nil
}

var errNoAnswer = errors.New("no answer in time")

// lifetime returns the context of one request: that ends with ctx, but for an answer with messages that has begun to come, and after the
// time that a server may take.
func (c *Client) lifetime(ctx context.Context, r request, began *atomic.Bool) (context.Context, context.CancelFunc) {
	timeout := c.options.Timeout + r.wait
	if !r.takes {
		return context.WithTimeoutCause(ctx, timeout, errNoAnswer)
	}
	run, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), timeout, errNoAnswer)
	stop := context.AfterFunc(ctx, func() {
		if began.Load() {
			_ = sleep(run, answerGrace)
		}
		cancel()
	})
	return run, func() {
		stop()
		cancel()
	}
}

// noAnswer is the error of a request that got no answer, or not all of it. The caller's own end of it is told as that.
func (c *Client) noAnswer(ctx, run context.Context, r request, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w", r.method, r.path, ctx.Err())
	}
	if cause := context.Cause(run); cause != nil {
		err = fmt.Errorf("%w: %v", cause, c.options.Timeout+r.wait)
	}
	if inner := (*url.Error)(nil); errors.As(err, &inner) { // the address is known
		err = inner.Err
	}
	return &Error{Method: r.method, Path: r.path, Detail: err.Error(), err: err}
}

func readAnswer(answer *http.Response, limit int64) ([]byte, error) {
	if answer.ContentLength > limit {
		return nil, errTooLarge
	}
	const trusted = 1 << 20 // of what a server says about the size before it has sent it
	var text bytes.Buffer
	text.Grow(int(min(max(answer.ContentLength, 0), trusted)) + bytes.MinRead)
	n, err := text.ReadFrom(io.LimitReader(answer.Body, limit+1))
	if err == nil && n > limit {
		err = errTooLarge
	}
	return text.Bytes(), err
}

// refusal is the error of an answer that is none of success.
func refusal(r request, answer *http.Response, text []byte) error {
	e := &Error{
		Method: r.method, Path: r.path, Status: answer.StatusCode,
		RequestID: answer.Header.Get(requestIDHeader), RetryAfter: retryAfter(answer.Header.Get("Retry-After")),
	}
	var body struct{ Detail json.RawMessage }
	isOurs := json.Unmarshal(text, &body) == nil && body.Detail != nil
	var invalid *fastpubsub.InvalidError
	if isOurs && json.Unmarshal(body.Detail, &e.Detail) != nil {
		e.Detail = ""
		invalid = problemsOf(body.Detail)
	}
	if len(e.Detail) > maxDetailBytes {
		e.Detail = strings.ToValidUTF8(e.Detail[:maxDetailBytes], "") + "..."
	}
	switch {
	case answer.StatusCode == http.StatusUnprocessableEntity && invalid != nil:
		e.Detail, e.err = invalid.Error(), invalid
	case answer.StatusCode == http.StatusRequestEntityTooLarge:
		e.err = &fastpubsub.InvalidError{Problems: []fastpubsub.Problem{{Field: "body", Type: "too_long", Msg: e.Detail}}}
	case answer.StatusCode == http.StatusUnauthorized && r.path == tokenPath:
		e.err = fastpubsub.ErrCredentials
	case answer.StatusCode == http.StatusUnauthorized:
		e.err = fastpubsub.ErrToken
	case answer.StatusCode == http.StatusForbidden && isOurs: // else a proxy's
		e.err = fastpubsub.ErrScope
	case answer.StatusCode == http.StatusNotFound && isOurs && r.path == tokenPath && e.Detail != noRoute:
		e.err = fastpubsub.ErrNoTokens
	case answer.StatusCode == http.StatusNotFound && isOurs && e.Detail != noRoute:
		e.err = fastpubsub.ErrNotFound
	case answer.StatusCode == http.StatusNotFound:
		e.Detail = strings.TrimSpace(e.Detail + " (is there a server of fastpubsub at this address?)")
	case answer.StatusCode == http.StatusConflict && isOurs:
		e.err = fastpubsub.ErrExists
	case answer.StatusCode == http.StatusServiceUnavailable && strings.HasSuffix(e.Detail, busy):
		e.err = fastpubsub.ErrBusy
	case answer.StatusCode < http.StatusBadRequest:
		e.Detail = "redirected, which is not followed"
		if to, err := answer.Location(); err == nil {
			e.Detail += ": to " + (&url.URL{Scheme: to.Scheme, Host: to.Host, Path: to.Path}).String()
		}
	}
	return e
}

// Texts of the API that tell errors of one status apart.
const (
	noRoute = "Not Found" // where not an object, but the route is missing
	busy    = "is busy, try again"
)

// problemsOf reads the list that an answer of 422 has. The places of problems have the names that the package fastpubsub gives
// them.
func problemsOf(text []byte) *fastpubsub.InvalidError {
	var list []struct {
		Type string
		Loc  []json.RawMessage // strings and numbers
		Msg  string
	}
	if json.Unmarshal(text, &list) != nil || len(list) == 0 {
		return nil
	}
	invalid := &fastpubsub.InvalidError{}
	for _, l := range list {
		var field []string
		for i, part := range l.Loc {
			if i > 0 || len(l.Loc) == 1 { // after "body", "query" or "path"
				name := string(part)
				_ = json.Unmarshal(part, &name) // which leaves a number as it is
				field = append(field, name)
			}
		}
		invalid.Problems = append(invalid.Problems, fastpubsub.Problem{Field: strings.Join(field, "."), Type: l.Type, Msg: l.Msg})
	}
	return invalid
}

// retryAfter reads seconds, or a date.
func retryAfter(text string) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
