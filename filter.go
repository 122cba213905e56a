package fastpubsub

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fastpubsub/fastpubsub/internal/jsontext"
)

// Limits of a [Filter].
const (
	maxFilterKeys   = 50
	maxFilterValues = 100
	maxFilterSize   = 16 << 10 // bytes of JSON text
)

// Filter picks the messages that a subscription gets by the top-level members of their payloads. It is made from JSON, an
// object of keys and the values allowed for each:
//
//	{"event": ["order.created", "order.updated"], "premium": [true]}
//
// A message matches if for every key it has one of the allowed values. Keys are taken literally: a dot is a dot. A message
// that lacks a key, or has null or an object there, does not match; one that has an array there matches if one of its
// elements is allowed, arrays and objects among them never are. If a payload has a key twice, the last one counts.
//
// A string in the payload is allowed if the filter has the same string, or a number or a boolean written the same; a
// number or boolean is allowed if the filter has the same value, or a string that is the text of it. So 1 and "1" in a
// filter allow the same: 1, 1.0, 1e0 and "1"; 1.0 allows these numbers and "1.0". Numbers are compared as decimals, exact
// at any size, and strings byte by byte.
//
// The zero Filter is none, JSON's null: every message matches. So it does with {}, which is kept apart from null only so
// that it reads back as it was written. A Filter is immutable and safe for concurrent use.
type Filter struct {
	rules *filterRules // nil for no filter
}

type filterRules struct {
	text    string // compact JSON
	path    string // jsonpath
	clauses []filterClause
}

// filterClause has what one key allows, apart by what the payload has there.
type filterClause struct {
	key     string
	strings []string
	numbers []string // as jsontext.AppendNumber spells them
	bools   [2]bool  // false, true
}

// ParseFilter reads a filter from JSON: null, or an object of 0 to 50 keys, each with a list of 1 to 100 strings, numbers
// or booleans, in no more than 16 KiB of text. If data has a key twice, the last one counts. Numbers have at most 1,000
// characters and an exponent within ±10,000, and \u0000 and lone surrogates are refused, as they are in payloads.
//
// The error is an [*InvalidError] with all that is wrong. Text that is not JSON, or too long, is not looked at further. A
// Field is "filter" followed by the key and the index of the value, where there are any, after dots.
func ParseFilter(data []byte) (Filter, error) {
	data = bytes.Trim(data, " \t\r\n")
	if string(data) == "null" {
		return Filter{}, nil
	}
	if len(data) > maxFilterSize {
		return Filter{}, &InvalidError{[]Problem{{"filter", "too_long",
			fmt.Sprintf("must have at most %d bytes, not %d", maxFilterSize, len(data))}}}
	}
	if err := jsontext.CheckObject(data); err != nil {
		return Filter{}, &InvalidError{[]Problem{filterTextProblem(err)}}
	}

	keys, lists := filterMembers(data)
	var problems []Problem
	if len(keys) > maxFilterKeys {
		problems = append(problems, Problem{"filter", "too_long",
			fmt.Sprintf("must have at most %d keys, not %d", maxFilterKeys, len(keys))})
	}
	r := &filterRules{clauses: make([]filterClause, 0, min(len(keys), maxFilterKeys))}
	text := []byte{'{'}
	for i, key := range keys {
		if i > 0 {
			text = append(text, ',')
		}
		text = jsontext.AppendQuote(text, key)
		text = append(text, ':')
		c := filterClause{key: key}
		text, problems = c.parse(text, lists[i], problems)
		r.clauses = append(r.clauses, c)
	}
	if len(problems) > 0 {
		return Filter{}, &InvalidError{problems}
	}
	r.text = string(append(text, '}'))
	r.path = jsonpath(r.clauses)
	return Filter{r}, nil
}

func filterTextProblem(err error) Problem {
	var e *jsontext.Error
	switch errors.As(err, &e); e.Kind {
	case jsontext.NotObject:
		return Problem{"filter", "dict_type", "must be an object or null"}
	case jsontext.OverLimit:
		return Problem{"filter", "value_error", "must not have " + e.Error()}
	default:
		return Problem{"filter", "json_invalid", "must be JSON: " + e.Error()}
	}
}

// filterMembers returns the distinct keys of an object in the order in which they first appear, and the last value of each.
func filterMembers(object []byte) (keys []string, values [][]byte) {
	index := map[string]int{}
	for raw, value := range jsontext.Members(object) {
		key := string(jsontext.Unquote(nil, raw))
		if i, ok := index[key]; ok {
			values[i] = value
			continue
		}
		index[key] = len(keys)
		keys, values = append(keys, key), append(values, value)
	}
	return keys, values
}

// parse takes the allowed values of c from list, and appends the list to text and what is wrong with it to problems.
func (c *filterClause) parse(text, list []byte, problems []Problem) ([]byte, []Problem) {
	field := "filter." + c.key
	if list[0] != '[' {
		return text, append(problems, Problem{field, "list_type", "must be a list"})
	}
	place := len(problems) // the list's own problem comes before those of its values
	n := 0
	text = append(text, '[')
	for value := range jsontext.Elements(list) {
		if n > 0 {
			text = append(text, ',')
		}
		switch value[0] {
		case '{', '[', 'n':
			problems = append(problems, Problem{field + "." + strconv.Itoa(n), "value_error", "must be a string, number or boolean"})
		case '"':
			s := jsontext.Unquote(nil, value[1:len(value)-1])
			text = jsontext.AppendQuote(text, s)
			c.allow(s)
		default:
			text = append(text, value...)
			c.allow(value)
		}
		n++
	}
	switch {
	case n == 0:
		problems = append(problems, Problem{field, "too_short", "must have at least 1 value"})
	case n > maxFilterValues:
		problems = slices.Insert(problems, place, Problem{field, "too_long",
			fmt.Sprintf("must have at most %d values, not %d", maxFilterValues, n)})
	}
	return append(text, ']'), problems
}

// allow adds a value by its text, as which a number, a boolean and the strings like them are the same.
func (c *filterClause) allow(text []byte) {
	add := func(list []string, s []byte) []string {
		if slices.Contains(list, string(s)) {
			return list
		}
		return append(list, string(s))
	}
	c.strings = add(c.strings, text)
	switch string(text) {
	case "false":
		c.bools[0] = true
	case "true":
		c.bools[1] = true
	default:
		if number, ok := jsontext.AppendNumber(nil, text); ok {
			c.numbers = add(c.numbers, number)
		}
	}
}

// Match reports whether a message with this payload passes the filter, exactly as the database decides it. A payload that
// Publish would refuse matches no filter.
func (f Filter) Match(payload []byte) bool {
	if jsontext.CheckObject(payload) != nil {
		return false
	}
	if f.rules == nil || len(f.rules.clauses) == 0 {
		return true
	}
	clauses := f.rules.clauses
	var buf [64]byte
	var last [maxFilterKeys][]byte // the value of each clause's key
	for raw, value := range jsontext.Members(payload) {
		key := jsontext.Unquote(buf[:0], raw)
		for i := range clauses {
			if clauses[i].key == string(key) {
				last[i] = value
				break
			}
		}
	}
	for i := range clauses {
		if last[i] == nil || !clauses[i].match(last[i]) {
			return false
		}
	}
	return true
}

func (c *filterClause) match(value []byte) bool {
	if value[0] != '[' {
		return c.matchScalar(value)
	}
	for element := range jsontext.Elements(value) {
		if c.matchScalar(element) {
			return true
		}
	}
	return false
}

func (c *filterClause) matchScalar(value []byte) bool {
	var buf [64]byte
	switch value[0] {
	case '[', '{', 'n':
		return false
	case 'f':
		return c.bools[0]
	case 't':
		return c.bools[1]
	case '"':
		return containsBytes(c.strings, jsontext.Unquote(buf[:0], value[1:len(value)-1]))
	default:
		if len(c.numbers) == 0 {
			return false
		}
		number, ok := jsontext.AppendNumber(buf[:0], value)
		return ok && containsBytes(c.numbers, number)
	}
}

func containsBytes(list []string, b []byte) bool {
	for _, s := range list {
		if s == string(b) {
			return true
		}
	}
	return false
}

// jsonpath returns the predicate for payload::jsonb @@ path that is true for what matches, and false or unknown for the
// rest; empty if everything matches, so that nothing needs to be evaluated.
func (f Filter) jsonpath() string {
	if f.rules == nil {
		return ""
	}
	return f.rules.path
}

// jsonpath joins what each key allows by &&. In SQL's lax mode a comparison looks into an array one level deep, is false for
// a key that is missing, and unknown between types, which a || passes over if its other side is true. Two spellings of a
// number are one here, and strings that no number or boolean is written like are compared only with strings.
func jsonpath(clauses []filterClause) string {
	var path []byte
	for i := range clauses {
		alternatives := clauses[i].alternatives()
		if i > 0 {
			path = append(path, " && "...)
		}
		if len(alternatives) > 1 && len(clauses) > 1 {
			path = append(path, '(')
			path = append(path, strings.Join(alternatives, " || ")...)
			path = append(path, ')')
		} else {
			path = append(path, strings.Join(alternatives, " || ")...)
		}
	}
	return string(path)
}

// alternatives returns the predicates of which one must be true.
func (c *filterClause) alternatives() []string {
	access := "$." + quote(c.key)
	var list []string
	for i, allowed := range c.bools {
		if allowed {
			list = append(list, access+" == "+strconv.FormatBool(i == 1))
		}
	}
	if len(c.numbers) <= maxComparisons {
		for _, number := range c.numbers {
			list = append(list, access+" == "+number)
		}
	} else {
		sorted := slices.SortedFunc(slices.Values(c.numbers), jsontext.CompareNumbers)
		list = append(list, searchPath(access, "number", sorted))
	}
	if len(c.strings) <= maxComparisons {
		for _, s := range c.strings {
			list = append(list, access+" == "+quote(s))
		}
	} else {
		sorted := slices.Sorted(slices.Values(c.strings))
		for i, s := range sorted {
			sorted[i] = quote(s)
		}
		list = append(list, searchPath(access, "string", sorted))
	}
	return list
}

// maxComparisons is how many comparisons one after the other are no slower than a binary search.
const maxComparisons = 4

// searchPath returns a predicate that is true if the value, or an element of it, is in the ascending list. The test of the
// type comes first: it keeps out arrays within arrays, into which a comparison would look, and spares the values of
// another type, for which no comparison would be false and end the search. Strings are ordered by bytes in a UTF8 database.
func searchPath(access, kind string, list []string) string {
	path := fmt.Appendf(nil, `exists(%s ? (@.type() == "%s" && (`, access, kind)
	return string(appendSearch(path, list)) + ")))"
}

func appendSearch(path []byte, list []string) []byte {
	if len(list) <= maxComparisons {
		return append(path, "@ == "+strings.Join(list, " || @ == ")...)
	}
	middle := len(list) / 2
	path = append(path, "@ < "+list[middle]+" && ("...)
	path = appendSearch(path, list[:middle])
	path = append(path, ") || @ >= "+list[middle]+" && ("...)
	path = appendSearch(path, list[middle:])
	return append(path, ')')
}

func quote(s string) string { return string(jsontext.AppendQuote(nil, s)) }

// Equal reports whether both filters are none, or are the same JSON but for white space and escapes.
func (f Filter) Equal(g Filter) bool { return f.String() == g.String() }

// IsZero reports whether f is no filter at all; {} is one.
func (f Filter) IsZero() bool { return f.rules == nil }

// String returns the filter as compact JSON, with keys, values and the spelling of numbers as they were given; null for
// the zero Filter.
func (f Filter) String() string {
	if f.rules == nil {
		return "null"
	}
	return f.rules.text
}

// MarshalJSON returns what [Filter.String] does.
func (f Filter) MarshalJSON() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalJSON is [ParseFilter].
func (f *Filter) UnmarshalJSON(data []byte) error {
	parsed, err := ParseFilter(data)
	if err != nil {
		return err
	}
	*f = parsed
	return nil
}
