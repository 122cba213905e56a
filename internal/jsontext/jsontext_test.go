package jsontext_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub/internal/jsontext"
)

func nested(depth int) string {
	return `{"a":` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + "}"
}

func TestCheckObject(t *testing.T) {
	t.Parallel()
	digits := func(n int) string { return strings.Repeat("7", n) }
	tests := []struct {
		reason string
		text   string
		want   string // of the error; empty if the text is accepted
		kind   jsontext.Kind
	}{
		{reason: "empty object", text: `{}`},
		{reason: "all kinds of values", text: `{"a":1,"b":"x","c":true,"d":false,"e":null,"f":[],"g":{},"h":[1,[2,{"i":3}]]}`},
		{reason: "all white space of JSON", text: " \t\r\n{ \"a\" \t:\r[ 1\n, 2 ] , \"b\" : { } }\n\n"},
		{reason: "duplicate keys", text: `{"a":1,"a":2}`},
		{reason: "empty key", text: `{"":""}`},
		{reason: "all escapes", text: `{"\"\\\/\b\f\n\r\t\u00e9":"\uD83D\ude00 \uffff"}`},
		{reason: "characters of every length", text: `{"é€😀":"` + "\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff" + `"}`},
		{reason: "numbers beyond float64", text: `{"a":[1e400,-1E+400,123456789012345678901234567890.123456789,1e-10000,0e10000,-0,-0.0e-0]}`},
		{reason: "exponent with leading zeros", text: `{"a":1e` + strings.Repeat("0", 500) + `1}`},
		{reason: "deepest", text: nested(jsontext.MaxDepth)},
		{reason: "longest number", text: `{"a":` + digits(jsontext.MaxNumberLen) + `}`},
		{reason: "largest", text: `{"a":"` + strings.Repeat("x", jsontext.MaxSize-8) + `"}`},

		{reason: "nothing", text: "", want: "unexpected end at offset 0", kind: jsontext.Malformed},
		{reason: "white space only", text: " \n", want: "unexpected end at offset 2", kind: jsontext.Malformed},
		{reason: "array", text: ` [1]`, want: "not an object at offset 1", kind: jsontext.NotObject},
		{reason: "null", text: `null`, want: "not an object at offset 0", kind: jsontext.NotObject},
		{reason: "byte order mark", text: "\ufeff{}", want: "not an object at offset 0", kind: jsontext.NotObject},
		{reason: "two objects", text: `{} {}`, want: "text after the object at offset 3", kind: jsontext.Malformed},
		{reason: "NUL after the object", text: "{}\x00", want: "text after the object at offset 2", kind: jsontext.Malformed},
		{reason: "white space that JSON lacks", text: "{\v}", want: "unexpected character at offset 1", kind: jsontext.Malformed},
		{reason: "no-break space", text: "{\u00a0}", want: "unexpected character at offset 1", kind: jsontext.Malformed},
		{reason: "comma first", text: `{,"a":1}`, want: "unexpected character at offset 1", kind: jsontext.Malformed},
		{reason: "comma last", text: `{"a":1,}`, want: "unexpected character at offset 7", kind: jsontext.Malformed},
		{reason: "comma last in an array", text: `{"a":[1,]}`, want: "unexpected character at offset 8", kind: jsontext.Malformed},
		{reason: "wrong bracket", text: `{"a":[1}`, want: "unexpected character at offset 7", kind: jsontext.Malformed},
		{reason: "key without value", text: `{"a"}`, want: "unexpected character at offset 4", kind: jsontext.Malformed},
		{reason: "key that is no string", text: `{1:2}`, want: "unexpected character at offset 1", kind: jsontext.Malformed},
		{reason: "two values", text: `{"a":1 2}`, want: "unexpected character at offset 7", kind: jsontext.Malformed},
		{reason: "cut in an array", text: `{"a":[1`, want: "unexpected end at offset 7", kind: jsontext.Malformed},
		{reason: "cut after a colon", text: `{"a":`, want: "unexpected end at offset 5", kind: jsontext.Malformed},
		{reason: "cut after a comma", text: `{"a":1,`, want: "unexpected end at offset 7", kind: jsontext.Malformed},
		{reason: "cut in a string", text: `{"a`, want: "unexpected end at offset 3", kind: jsontext.Malformed},
		{reason: "cut in an escape", text: `{"a\`, want: "unexpected end at offset 4", kind: jsontext.Malformed},
		{reason: "word cut short", text: `{"a":tru}`, want: "unexpected character at offset 8", kind: jsontext.Malformed},
		{reason: "word at the end", text: `{"a":nul`, want: "unexpected end at offset 8", kind: jsontext.Malformed},
		{reason: "word too long", text: `{"a":falsely}`, want: "unexpected character at offset 10", kind: jsontext.Malformed},
		{reason: "NaN", text: `{"a":NaN}`, want: "unexpected character at offset 5", kind: jsontext.Malformed},
		{reason: "infinity", text: `{"a":-Infinity}`, want: "unexpected character at offset 6", kind: jsontext.Malformed},
		{reason: "leading zero", text: `{"a":01}`, want: "unexpected character at offset 6", kind: jsontext.Malformed},
		{reason: "plus sign", text: `{"a":+1}`, want: "unexpected character at offset 5", kind: jsontext.Malformed},
		{reason: "no digit before the point", text: `{"a":.5}`, want: "unexpected character at offset 5", kind: jsontext.Malformed},
		{reason: "no digit after the point", text: `{"a":1.}`, want: "unexpected character at offset 7", kind: jsontext.Malformed},
		{reason: "no exponent", text: `{"a":1e}`, want: "unexpected character at offset 7", kind: jsontext.Malformed},
		{reason: "hexadecimal", text: `{"a":0x1}`, want: "unexpected character at offset 6", kind: jsontext.Malformed},
		{reason: "control character", text: "{\"a\":\"x\ny\"}", want: "control character in a string at offset 7", kind: jsontext.Malformed},
		{reason: "NUL", text: "{\"a\x00\":1}", want: "control character in a string at offset 3", kind: jsontext.Malformed},
		{reason: "unknown escape", text: `{"\x41":1}`, want: "unknown escape at offset 2", kind: jsontext.Malformed},
		{reason: "short \\u escape", text: `{"\u00g0":1}`, want: "incomplete \\u escape at offset 2", kind: jsontext.Malformed},
		{reason: "Latin-1", text: "{\"\xe9\":1}", want: "invalid UTF-8 at offset 2", kind: jsontext.Malformed},
		{reason: "overlong slash", text: "{\"\xc0\xaf\":1}", want: "invalid UTF-8 at offset 2", kind: jsontext.Malformed},
		{reason: "overlong in three bytes", text: "{\"\xe0\x9f\xbf\":1}", want: "invalid UTF-8 at offset 2", kind: jsontext.Malformed},
		{reason: "overlong in four bytes", text: "{\"\xf0\x8f\xbf\xbf\":1}", want: "invalid UTF-8 at offset 2", kind: jsontext.Malformed},
		{reason: "surrogate in UTF-8", text: "{\"\xed\xa0\x80\":1}", want: "invalid UTF-8 at offset 2", kind: jsontext.Malformed},
		{reason: "beyond U+10FFFF", text: "{\"\xf4\x90\x80\x80\":1}", want: "invalid UTF-8 at offset 2", kind: jsontext.Malformed},

		{reason: "escaped NUL", text: `{"a":"xy\u0000"}`, want: "\\u0000 at offset 8", kind: jsontext.OverLimit},
		{reason: "high surrogate alone", text: `{"a":"\ud83d"}`, want: "lone surrogate at offset 6", kind: jsontext.OverLimit},
		{reason: "high surrogate before a character", text: `{"a":"\ud83d\u0041"}`, want: "lone surrogate at offset 6", kind: jsontext.OverLimit},
		{reason: "low surrogate alone", text: `{"a":"\ude00"}`, want: "lone surrogate at offset 6", kind: jsontext.OverLimit},
		{reason: "surrogates reversed", text: `{"a":"\ude00\ud83d"}`, want: "lone surrogate at offset 6", kind: jsontext.OverLimit},
		{reason: "too deep", text: nested(jsontext.MaxDepth + 1), want: "depth over 128 at offset 132", kind: jsontext.OverLimit},
		{reason: "number too long", text: `{"a":` + digits(jsontext.MaxNumberLen+1) + `}`, want: "number over 1000 characters at offset 5", kind: jsontext.OverLimit},
		{reason: "exponent too large", text: `{"a":1e10001}`, want: "exponent over 10000 at offset 5", kind: jsontext.OverLimit},
		{reason: "exponent too small", text: `{"a":0e-` + digits(99) + `}`, want: "exponent over 10000 at offset 5", kind: jsontext.OverLimit},
		{reason: "too large", text: `{"a":"` + strings.Repeat("x", jsontext.MaxSize) + `"}`, want: "size over 16777216 bytes at offset 16777216", kind: jsontext.OverLimit},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			err := jsontext.CheckObject([]byte(tt.text))
			if tt.want == "" {
				if err != nil {
					t.Fatalf("got %v, want it accepted", err)
				}
				return
			}
			var e *jsontext.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if e.Error() != tt.want || e.Kind != tt.kind {
				t.Errorf("got %q, kind %d, want %q, kind %d", e, e.Kind, tt.want, tt.kind)
			}
		})
	}
}

// TestCheckObjectAligned moves each special byte over every position of the eight that are looked at together.
func TestCheckObjectAligned(t *testing.T) {
	t.Parallel()
	for n := range 20 {
		for m := range 20 {
			before, after := strings.Repeat("x", n), strings.Repeat("!", m)
			for _, c := range []string{"", "\x7f", `\"`, `\\`, `\n`, `\u00e9`, "é", "€", "😀", "ééé"} {
				if text := `{"` + before + c + after + `":1}`; jsontext.CheckObject([]byte(text)) != nil {
					t.Errorf("refuses %q", text)
				}
			}
			for _, c := range []string{"\x00", "\x1f", `"`, `\`, "\x80", "\xff", "\xc3", "\xe2\x82", "\xf0\x9f\x98"} {
				if text := `{"` + before + c + after + `":1}`; jsontext.CheckObject([]byte(text)) == nil && c+after != `"` && c+after != `\` {
					t.Errorf("accepts %q", text)
				}
			}
		}
	}
}

func TestCheckObjectAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { _ = jsontext.CheckObject(smallPayload) }); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

// accepted is a slow second opinion on what CheckObject should accept, from encoding/json and a few plain rules.
func accepted(text []byte) bool {
	if !json.Valid(text) || !utf8.Valid(text) || len(text) > jsontext.MaxSize {
		return false
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.UseNumber()
	depth := 0
	for first := true; ; first = false {
		token, err := d.Token()
		if err != nil {
			break
		}
		if first && token != json.Delim('{') {
			return false
		}
		switch token := token.(type) {
		case json.Delim:
			if token == '{' || token == '[' {
				depth++
			} else {
				depth--
			}
			if depth > jsontext.MaxDepth {
				return false
			}
		case json.Number:
			_, exp, _ := strings.Cut(strings.ToLower(string(token)), "e")
			exp = strings.TrimLeft(strings.TrimLeft(exp, "+-"), "0")
			if len(token) > jsontext.MaxNumberLen || len(exp) > 5 || len(exp) == 5 && exp > "10000" {
				return false
			}
		}
	}
	// What is left is a backslash in a string, and the character after it is looked at with it.
	for rest := string(text); ; {
		_, after, found := strings.Cut(rest, `\`)
		if !found {
			return true
		}
		var r, low rune
		if _, err := fmt.Sscanf(after, "u%04x", &r); err != nil {
			rest = after[1:]
			continue
		}
		rest = after[5:]
		switch {
		case r == 0, r >= 0xDC00 && r <= 0xDFFF:
			return false
		case r >= 0xD800 && r <= 0xDBFF:
			if _, err := fmt.Sscanf(rest, `\u%04x`, &low); err != nil || low < 0xDC00 || low > 0xDFFF {
				return false
			}
			rest = rest[6:]
		}
	}
}

func FuzzCheckObject(f *testing.F) {
	for _, text := range []string{
		`{}`, ` {"a" : [1, -0.5e+7, "x", true, false, null, {}] } `, `{"a":1,"a":"\u00e9\ud83d\ude00\n"}`, nested(128), nested(129),
		`{"a":1e10000}`, `{"a":1e-10001}`, `{"\u0000":1}`, `{"\ud83d":1}`, "{\"\xed\xa0\x80\":1}", `{"a":01}`, `[1]`, `{"a":[1,]}`,
		`{"\\u0000":"\\\ud83d"}`, `{"é€😀":"` + "\x7f" + `"}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := slices.Clone(text)
		err := jsontext.CheckObject(text)
		if want := accepted(text); want != (err == nil) {
			t.Fatalf("%q: got %v, want accepted %t", text, err, want)
		}
		if err != nil {
			if e := err.(*jsontext.Error); e.Offset < 0 || e.Offset > len(text) {
				t.Fatalf("%q: offset %d", text, e.Offset)
			}
		}
		// The readers agree with encoding/json on what was accepted, and survive the rest.
		got := read(text)
		if !slices.Equal(before, text) {
			t.Fatalf("%q was changed to %q", before, text)
		}
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%q (-want +got):\n%s", text, diff)
		}
	})
}

// read reads all of an object that can be read, two levels deep.
func read(object []byte) map[string]json.RawMessage {
	members := map[string]json.RawMessage{}
	for key, value := range jsontext.Members(object) {
		members[string(jsontext.Unquote(nil, key))] = value
		jsontext.AppendNumber(nil, value)
		if len(value) > 0 && value[0] == '[' {
			for element := range jsontext.Elements(value) {
				jsontext.AppendNumber(nil, element)
			}
		}
	}
	return members
}

func TestElements(t *testing.T) {
	t.Parallel()
	got := []string{}
	for element := range jsontext.Elements([]byte(`[ 1 ,"a]\"," , [2,[3]],{"x":"}"} , null,"\\"]`)) {
		got = append(got, string(element))
	}
	want := []string{`1`, `"a]\","`, `[2,[3]]`, `{"x":"}"}`, `null`, `"\\"`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for element := range jsontext.Elements([]byte(` [ ] `)) {
		t.Errorf("an empty array has %q", element)
	}
}

func TestAppendQuote(t *testing.T) {
	t.Parallel()
	var all []byte
	for c := range 0x80 {
		all = append(all, byte(c))
	}
	all = append(all, "é€😀\u2028"...)
	quoted := jsontext.AppendQuote(nil, all)
	var got string
	if err := json.Unmarshal(quoted, &got); err != nil || got != string(all) {
		t.Errorf("%s: got %q, %v", quoted, got, err)
	}
	if got := jsontext.Unquote(nil, quoted[1:len(quoted)-1]); string(got) != string(all) {
		t.Errorf("%s: got %q", quoted, got)
	}
}

func TestAppendNumber(t *testing.T) {
	t.Parallel()
	tests := []struct{ reason, text, want string }{
		{"zero", "0", "0"},
		{"negative zero with everything", "-0.000e-17", "0"},
		{"integer", "1234", "1234"},
		{"zeros within", "1002", "1002"},
		{"zeros after", "1200", "12e2"},
		{"zeros after the point", "1200.00", "12e2"},
		{"zero before the point", "0.0012", "12e-4"},
		{"fraction", "-1.50", "-15e-1"},
		{"fraction with a zero within", "10.05", "1005e-2"},
		{"exponent", "10e-1", "1"},
		{"positive exponent", "0.15E+3", "15e1"},
		{"beyond float64", "1e400", "1e400"},
		{"more digits than float64", "9007199254740993.0", "9007199254740993"},
		{"as large as a payload's can be", "1" + strings.Repeat("0", 999) + "e10000", "1e10999"},
		{"long spelling of a short one", "1" + strings.Repeat("0", 5000), "1e5000"},
		{"too many digits", strings.Repeat("1", 1001), ""},
		{"too large", "1e11001", ""},
		{"too small", "1e-11001", ""},
		{"exponent beyond any integer", "1e" + strings.Repeat("9", 40), ""},
		{"no number", "x", ""},
		{"nothing", "", ""},
		{"a sign", "-", ""},
		{"plus sign", "+1", ""},
		{"white space before", " 1", ""},
		{"white space after", "1 ", ""},
		{"leading zero", "01", ""},
		{"NaN", "NaN", ""},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			got, ok := jsontext.AppendNumber([]byte("<"), []byte(tt.text))
			if string(got) != "<"+tt.want || ok != (tt.want != "") {
				t.Errorf("%s: got %s, %t, want <%s", tt.text, got, ok, tt.want)
			}
		})
	}
}

func sign(n int) int { return max(-1, min(n, 1)) }

func TestCompareNumbers(t *testing.T) {
	t.Parallel()
	ascending := []string{"-1e400", "-25e-1", "-2", "-15e-1", "-1", "-1e-400", "0", "1e-400", "5e-1", "1", "105e-2", "11e-1", "2", "12", "1e2", "101", "1e400"}
	for i, a := range ascending {
		if got, ok := jsontext.AppendNumber(nil, []byte(a)); !ok || string(got) != a {
			t.Errorf("%s is spelled %s", a, got)
		}
		for j, b := range ascending {
			if got := jsontext.CompareNumbers(a, b); got != sign(i-j) {
				t.Errorf("%s and %s: got %d", a, b, got)
			}
		}
	}
}

var smallPayload = []byte(`{"id":"0b9e5a54-6b1f-4d5e-9a53-0f6b8b1a2c3d","event":"order.created","amount":129.95,"currency":"EUR",` +
	`"customer":{"id":48213,"country":"BR","premium":true},"items":["a-100","b-200"],"note":"gift wrap"}`)

func BenchmarkCheckObject(b *testing.B) {
	payloads := []struct {
		name string
		text []byte
	}{
		{"200B", smallPayload},
		{"20kB", []byte(`{"all":[` + strings.Repeat(string(smallPayload)+", ", 99) + string(smallPayload) + `]}`)},
		{"1MB-string", []byte(`{"a":"` + strings.Repeat("x", 1<<20) + `"}`)},
		{"10kB-Cyrillic", []byte(`{"a":"` + strings.Repeat("привет, мир ", 500) + `"}`)},
	}
	for _, p := range payloads {
		b.Run(p.name, func(b *testing.B) {
			b.SetBytes(int64(len(p.text)))
			b.ReportAllocs()
			for b.Loop() {
				if err := jsontext.CheckObject(p.text); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(p.name+"/json.Valid", func(b *testing.B) {
			b.SetBytes(int64(len(p.text)))
			for b.Loop() {
				if !json.Valid(p.text) {
					b.Fatal("invalid")
				}
			}
		})
	}
}
