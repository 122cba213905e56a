package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fastpubsub/fastpubsub/internal/idrule"
	"github.com/fastpubsub/fastpubsub/internal/jsontext"
)

// readBody returns a JSON body, unparsed and not empty.
func (a *API) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if !isJSON(r.Header.Get("Content-Type")) {
		return nil, &statusError{http.StatusUnsupportedMediaType, "The Content-Type must be application/json"}
	}
	body, err := readLimited(w, r, a.config.MaxBodyBytes)
	if err != nil {
		return nil, err
	}
	return body, checkNotEmpty(body)
}

func checkNotEmpty(body []byte) error {
	if len(bytes.TrimLeft(body, " \t\r\n")) == 0 {
		return problems{{"missing", []any{"body"}, "must not be empty"}}
	}
	return nil
}

// readLimited returns a body of any type, if it has at most limit bytes.
func readLimited(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, &statusError{http.StatusUnsupportedMediaType, "The body must have no Content-Encoding"}
	}
	var buf bytes.Buffer
	if r.ContentLength <= limit {
		const trusted = 1 << 20 // of what a client says about the size before it has sent it
		// ReadFrom asks for another 512 bytes before it sees the end.
		buf.Grow(int(min(max(r.ContentLength, 0), trusted)) + bytes.MinRead)
		_, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit))
		if tooLarge := (*http.MaxBytesError)(nil); errors.Is(err, os.ErrDeadlineExceeded) {
			endConnection(w)
			return nil, &statusError{http.StatusRequestTimeout, "The body did not arrive in time"}
		} else if err != nil && !errors.As(err, &tooLarge) {
			return nil, &statusError{http.StatusBadRequest, "The body could not be read"}
		} else if err == nil {
			return buf.Bytes(), nil
		}
	}
	endConnection(w)
	return nil, &statusError{http.StatusRequestEntityTooLarge, fmt.Sprintf("The body must have at most %d bytes", limit)}
}

// lingerTimeout is for a client to see an answer, while it sends what nobody reads any more.
const lingerTimeout = time.Second

// endConnection lets the connection end after the answer to a request whose body was not read to its end.
func endConnection(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(lingerTimeout)) // else the server's
}

func isJSON(contentType string) bool {
	if contentType == "" || contentType == "application/json" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (media == "application/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json"))
}

// checkJSON returns a problem unless text is JSON. encoding/json decides, which is slow, but names the place.
func checkJSON(text []byte) error {
	var raw json.RawMessage
	err := json.Unmarshal(text, &raw)
	if err == nil {
		return nil
	}
	offset := int64(0)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		offset = syntax.Offset
	}
	return invalidJSON(int(offset), err.Error())
}

func invalidJSON(offset int, reason string) problems {
	return problems{{"json_invalid", []any{"body", offset}, "must be JSON: " + reason}}
}

// elements calls yield with the text of each element of an array and returns how many there are. It looks only at what
// separates them: text is one JSON array if and only if the error is nil and each element is one JSON value.
func elements(text []byte, yield func(i int, element []byte)) (int, error) {
	i := skipSpace(text, skipSpace(text, 0)+1)
	if i < len(text) && text[i] == ']' {
		return 0, end(text, i+1)
	}
	for n := 0; ; n++ {
		start := i
		i = skipValue(text, i)
		if i == start {
			return n, unexpected(text, i)
		}
		yield(n, text[start:i])
		i = skipSpace(text, i)
		if i >= len(text) || text[i] != ',' && text[i] != ']' {
			return n, unexpected(text, i)
		}
		if text[i] == ']' {
			return n + 1, end(text, i+1)
		}
		i = skipSpace(text, i+1)
	}
}

func end(text []byte, i int) error {
	if i = skipSpace(text, i); i < len(text) {
		return invalidJSON(i, "text after the array")
	}
	return nil
}

func unexpected(text []byte, i int) error {
	if i >= len(text) {
		return invalidJSON(len(text), "unexpected end")
	}
	return invalidJSON(i, "unexpected character")
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// skipValue returns where the value at b[i:] ends, if it is one; otherwise i, or the end of something that is none.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 {
				return i
			}
			if depth == 0 {
				return i + 1
			}
		case ',', ' ', '\n', '\r', '\t':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return i
}

// skipString returns where the string whose opening quote is b[i] ends.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// bodyFields are the members of an object in a request's body. Its methods read one each, and collect what is wrong. They
// check what a field promises by itself; what depends on others, or on settings, is the broker's.
type bodyFields struct {
	values map[string][]byte // JSON text
	problems
}

func readObject(body []byte) (*bodyFields, error) {
	if err := jsontext.CheckObject(body); err != nil {
		var e *jsontext.Error
		if errors.As(err, &e) && e.Kind == jsontext.NotObject {
			if err := checkJSON(body); err != nil {
				return nil, err
			}
			return nil, problems{{"model_attributes_type", []any{"body"}, "must be an object"}}
		}
		return nil, invalidJSON(e.Offset, e.Rule)
	}
	f := &bodyFields{values: map[string][]byte{}}
	for key, value := range jsontext.Members(body) {
		f.values[string(jsontext.Unquote(nil, key))] = value // the last counts
	}
	return f, nil
}

// id reads an id, which must be there.
func (f *bodyFields) id(name string) string {
	loc := []any{"body", name}
	value, ok := f.values[name]
	if !ok {
		f.add(loc, "missing", "must not be missing")
		return ""
	}
	if value[0] != '"' {
		f.add(loc, "string_type", "must be a string")
		return ""
	}
	id := string(jsontext.Unquote(nil, value[1:len(value)-1]))
	if kind, msg := idrule.Check(id); kind != "" {
		f.add(loc, kind, "%s", msg)
	}
	return id
}

// integer reads a number from 1 to highest; 0 if it is missing or null.
func (f *bodyFields) integer(name string, highest int) int {
	n, _ := f.optional(name, 1, highest)
	return n
}

// optional reads a number; ok is false if it is missing, null, or not one.
func (f *bodyFields) optional(name string, lowest, highest int) (n int, ok bool) {
	loc := []any{"body", name}
	value, ok := f.values[name]
	if !ok || string(value) == "null" {
		return 0, false
	}
	if value[0] != '-' && (value[0] < '0' || value[0] > '9') {
		f.add(loc, "int_type", "must be an integer")
		return 0, false
	}
	n, whole := parseInteger(value)
	if !whole {
		f.add(loc, "int_from_float", "must be an integer, without a fraction")
		return 0, false
	}
	f.checkRange(loc, n, lowest, highest)
	return n, true
}

// parseInteger reads a JSON number; whole is false if it has a fraction. A number beyond the range of an int is the
// int closest to it.
func parseInteger(text []byte) (n int, whole bool) {
	if n, err := strconv.Atoi(string(text)); err == nil {
		return n, true
	}
	beyond := math.MaxInt
	if text[0] == '-' {
		beyond = math.MinInt
	}
	number, ok := jsontext.AppendNumber(nil, text)
	if !ok {
		return beyond, true // no body with such a number gets here
	}
	digits, exponent, _ := strings.Cut(string(number), "e")
	switch {
	case strings.HasPrefix(exponent, "-"):
		return 0, false
	case len(exponent) > 2:
		return beyond, true
	case exponent != "":
		zeros, _ := strconv.Atoi(exponent)
		digits += strings.Repeat("0", zeros)
	}
	n, _ = strconv.Atoi(digits) // which saturates
	return n, true
}

func (p *problems) checkRange(loc []any, n, lowest, highest int) {
	if n < lowest {
		p.add(loc, "greater_than_equal", "must be at least %d", lowest)
	} else if n > highest {
		p.add(loc, "less_than_equal", "must be at most %d", highest)
	}
}

// queryFields are the parameters of a request's query, read as [bodyFields] are. Of a parameter given twice the last
// counts.
type queryFields struct {
	values url.Values
	problems
}

func readQuery(r *http.Request) *queryFields {
	values, err := url.ParseQuery(r.URL.RawQuery)
	f := &queryFields{values: values}
	if err != nil {
		f.add([]any{"query"}, "value_error", "must be URL-encoded")
	}
	return f
}

func (f *queryFields) last(name string) (string, bool) {
	values := f.values[name]
	if len(values) == 0 {
		return "", false
	}
	return values[len(values)-1], true
}

// text reads a string of 1 to highest characters, which must be there.
func (f *queryFields) text(name string, highest int) string {
	loc := []any{"query", name}
	s, ok := f.last(name)
	switch n := utf8.RuneCountInString(s); {
	case !ok:
		f.add(loc, "missing", "must not be missing")
	case n == 0:
		f.add(loc, "string_too_short", "must have at least 1 character")
	case n > highest:
		f.add(loc, "string_too_long", "must have at most %d characters, not %d", highest, n)
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		f.add(loc, "value_error", "must be UTF-8 without NUL")
	}
	return s
}

// integer reads a decimal number; missing if it is not there.
func (f *queryFields) integer(name string, missing, lowest, highest int) int {
	loc := []any{"query", name}
	s, ok := f.last(name)
	if !ok {
		return missing
	}
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		f.add(loc, "int_parsing", "must be an integer")
		return missing
	}
	n, err := strconv.Atoi(s) // which saturates
	if err != nil && n == highest {
		f.add(loc, "less_than_equal", "must be at most %d", highest)
	}
	f.checkRange(loc, n, lowest, highest)
	return n
}
