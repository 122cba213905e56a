package fastpubsub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func parseFilter(tb testing.TB, text string) fastpubsub.Filter {
	tb.Helper()
	f, err := fastpubsub.ParseFilter([]byte(text))
	if err != nil {
		tb.Fatalf("ParseFilter(%s): %v", text, err)
	}
	return f
}

// filterMatches are pairs of a filter and a payload, with what Match and the database have to say of them.
var filterMatches = []struct {
	reason          string
	filter, payload string
	want            bool
}{
	{"none", `null`, `{"a":1}`, true},
	{"no keys", `{}`, `{"a":1}`, true},
	{"equal string", `{"a":["x"]}`, `{"a":"x"}`, true},
	{"other string", `{"a":["x"]}`, `{"a":"y"}`, false},
	{"one of several", `{"a":["x","y","z"]}`, `{"a":"z"}`, true},
	{"case counts", `{"a":["x"]}`, `{"a":"X"}`, false},
	{"white space counts", `{"a":["x"]}`, `{"a":"x "}`, false},
	{"characters of HTML", `{"a":["<a & b>"]}`, `{"a":"<a & b>"}`, true},
	{"normal forms differ", `{"a":["\u00e9"]}`, `{"a":"e\u0301"}`, false},
	{"escapes mean characters", `{"a":["\u0061\/\ud83d\ude00"]}`, `{"a":"a/😀"}`, true},
	{"escapes in the payload", `{"aé":["a/😀\n\""]}`, `{"\u0061\u00E9":"\u0061\/\uD83D\uDE00\n\""}`, true},
	{"empty string", `{"a":[""]}`, `{"a":""}`, true},

	{"key missing", `{"a":["x"]}`, `{"b":"x"}`, false},
	{"null", `{"a":["x","null",0,false]}`, `{"a":null}`, false},
	{"the string null", `{"a":["null"]}`, `{"a":"null"}`, true},
	{"empty object", `{"a":["x"]}`, `{}`, false},
	{"both keys", `{"a":["x"],"b":["y"]}`, `{"b":"y","a":"x"}`, true},
	{"one key of two", `{"a":["x"],"b":["y"]}`, `{"a":"x","b":"x"}`, false},
	{"alternatives bind before keys", `{"a":["x","y"],"b":["z"]}`, `{"a":"x","b":"w"}`, false},
	{"alternatives of both keys", `{"a":["x","y"],"b":["z","w"]}`, `{"a":"y","b":"w"}`, true},
	{"nested key", `{"a":["x"]}`, `{"b":{"a":"x"}}`, false},
	{"dot in the filter", `{"a.b":["x"]}`, `{"a":{"b":"x"}}`, false},
	{"dot in both", `{"a.b":["x"]}`, `{"a.b":"x"}`, true},
	{"empty key", `{"":["x"]}`, `{"":"x"}`, true},
	{"key with a dollar", `{"$a":["x"]}`, `{"$a":"x"}`, true},
	{"key that is a dollar", `{"$":["x"]}`, `{"$":"x"}`, true},
	{"key with quotes", `{"a\"b\\c'":["x"]}`, `{"a\"b\\c'":"x"}`, true},
	{"key with control characters", `{"\u0001\u001f\n\t":["x"]}`, `{"\u0001\u001F\u000a\u0009":"x"}`, true},
	{"control characters before a backslash", `{"\u0001\\":["\u0002\\u0041\u0003\""]}`, `{"\u0001\\":"\u0002\\u0041\u0003\""}`, true},
	{"key beyond the basic plane", `{"😀":["x"]}`, `{"\ud83d\ude00":"x"}`, true},
	{"key that looks like a wildcard", `{"*":["x"]}`, `{"a":"x"}`, false},
	{"value that looks like jsonpath", `{"a":["$.b"]}`, `{"a":"x","b":"x"}`, false},
	{"value that closes its quotes", `{"a":["x\" || \"1\" == \"1"]}`, `{"a":"y"}`, false},
	{"last of duplicate keys", `{"a":["x"]}`, `{"a":"y","a":"x"}`, true},
	{"first of duplicate keys", `{"a":["x"]}`, `{"a":"x","a":"y"}`, false},
	{"null as last of duplicate keys", `{"a":["x"]}`, `{"a":"x","\u0061":null}`, false},
	{"duplicate keys in the filter", `{"a":["x"],"a":["y"]}`, `{"a":"x"}`, false},

	{"integer", `{"a":[1]}`, `{"a":1}`, true},
	{"other integer", `{"a":[1]}`, `{"a":-1}`, false},
	{"1 and 1.0", `{"a":[1]}`, `{"a":1.0}`, true},
	{"1.0 and 1", `{"a":[1.0]}`, `{"a":1}`, true},
	{"1 and 10e-1", `{"a":[1]}`, `{"a":10e-1}`, true},
	{"1E+2 and 100", `{"a":[1E+2]}`, `{"a":100.0}`, true},
	{"0 and -0.0", `{"a":[0]}`, `{"a":-0.0e5}`, true},
	{"-0 and 0", `{"a":[-0]}`, `{"a":0}`, true},
	{"negative", `{"a":[-1.5]}`, `{"a":-15e-1}`, true},
	{"equal as float64 only", `{"a":[9007199254740993]}`, `{"a":9007199254740992}`, false},
	{"more digits than float64", `{"a":[0.1]}`, `{"a":0.1000000000000000000000000000000001}`, false},
	{"beyond float64", `{"a":[1e400]}`, `{"a":10e399}`, true},
	{"infinite as float64 only", `{"a":[1e400]}`, `{"a":1e401}`, false},
	{"zero as float64 only", `{"a":[0]}`, `{"a":1e-400}`, false},
	{"largest", `{"a":["1e10998"]}`, `{"a":1` + strings.Repeat("0", 994) + `e10004}`, false},
	{"largest exponent", `{"a":[1e10000]}`, `{"a":10e9999}`, true},
	{"smallest exponent", `{"a":[-1e-10000]}`, `{"a":-0.1e-9999}`, true},
	{"string beyond what a number can be", `{"a":["1e99999999999"]}`, `{"a":"1e99999999999"}`, true},
	{"string of more digits than a number can have", `{"a":["1` + strings.Repeat("0", 2000) + `"]}`, `{"a":1e2000}`, true},

	{"number and its text", `{"a":[1]}`, `{"a":"1"}`, true},
	{"number and other text of it", `{"a":[1]}`, `{"a":"1.0"}`, false},
	{"number as written", `{"a":[1.0]}`, `{"a":"1.0"}`, true},
	{"number not as written", `{"a":[1.0]}`, `{"a":"1"}`, false},
	{"both spellings of a number", `{"a":[1.0,1]}`, `{"a":"1"}`, true},
	{"string and its number", `{"a":["1"]}`, `{"a":1.0}`, true},
	{"string of a number and another string of it", `{"a":["1"]}`, `{"a":"1.0"}`, false},
	{"string with a space", `{"a":[" 1"]}`, `{"a":1}`, false},
	{"string with a space and itself", `{"a":[" 1"]}`, `{"a":" 1"}`, true},
	{"string with a plus sign", `{"a":["+1"]}`, `{"a":1}`, false},
	{"string with a leading zero", `{"a":["01"]}`, `{"a":1}`, false},
	{"string in hexadecimal", `{"a":["0x1"]}`, `{"a":1}`, false},
	{"string with an underscore", `{"a":["1_0"]}`, `{"a":10}`, false},
	{"NaN", `{"a":["NaN","Infinity"]}`, `{"a":"NaN"}`, true},
	{"true", `{"a":[true]}`, `{"a":true}`, true},
	{"true and false", `{"a":[true]}`, `{"a":false}`, false},
	{"either boolean", `{"a":[true,false]}`, `{"a":false}`, true},
	{"true and its text", `{"a":[true]}`, `{"a":"true"}`, true},
	{"text and its boolean", `{"a":["false"]}`, `{"a":false}`, true},
	{"true and other text", `{"a":[true]}`, `{"a":"True"}`, false},
	{"true and 1", `{"a":[true,"true"]}`, `{"a":1}`, false},
	{"0 and false", `{"a":[0]}`, `{"a":false}`, false},

	{"element", `{"a":["x"]}`, `{"a":["y", "x"]}`, true},
	{"no element", `{"a":["x"]}`, `{"a":["y"]}`, false},
	{"empty array", `{"a":["x"]}`, `{"a":[ ]}`, false},
	{"element after every other kind", `{"a":[1]}`, `{"a":["x",null,true,{},[1],{"a":1},1.0]}`, true},
	{"element before every other kind", `{"a":["x"]}`, `{"a":["x",null,true,{},[1],2]}`, true},
	{"null element", `{"a":["null"]}`, `{"a":[null]}`, false},
	{"element of an element", `{"a":["x"]}`, `{"a":[["x"]]}`, false},
	{"object", `{"a":["x"]}`, `{"a":{"a":"x"}}`, false},
	{"object in an array", `{"a":["x"]}`, `{"a":[{"a":"x"}]}`, false},
	{"elements for different alternatives", `{"a":["x",2],"b":[true]}`, `{"a":[1,2],"b":["y",true]}`, true},
	{"element among many strings", `{"a":["v","w","x","y","z",1]}`, `{"a":[null,"u",[["w"]],2,true,"y"]}`, true},
	{"many strings, the least", `{"a":["z","y","x","w","v","é","😀"]}`, `{"a":"v"}`, true},
	{"many strings, the greatest", `{"a":["z","y","x","w","v","é","😀"]}`, `{"a":"😀"}`, true},
	{"many strings, none", `{"a":["z","y","x","w","v","é","\uffff","😀"]}`, `{"a":"\ufffe"}`, false},
	{"element of an element among many strings", `{"a":["v","w","x","y","z"]}`, `{"a":[["x"]]}`, false},
	{"many numbers", `{"a":[3,-2,1e400,-1e-400,0.5,10,9]}`, `{"a":[-3,-0.1e-399]}`, true},
	{"many numbers, none", `{"a":[3,-2,1e400,-1e-400,0.5,10,9]}`, `{"a":[0,-3,1e401,"x",[3]]}`, false},
	{"boolean among many", `{"a":[3,"v","w","x","y","z",1,2,4,5,true]}`, `{"a":true}`, true},
	{"text of an array", `{"a":["[1]"]}`, `{"a":[1]}`, false},

	{"no object", `{}`, `[1]`, false},
	{"no JSON", `null`, `{"a":`, false},
	{"not to be published", `{"a":["x"]}`, `{"a":"x","b":"\u0000"}`, false},
}

func TestFilterMatch(t *testing.T) {
	t.Parallel()
	for _, tt := range filterMatches {
		t.Run(tt.reason, func(t *testing.T) {
			if got := parseFilter(t, tt.filter).Match([]byte(tt.payload)); got != tt.want {
				t.Errorf("%s matches %s: got %t", tt.filter, tt.payload, got)
			}
		})
	}
}

func TestParseFilter(t *testing.T) {
	t.Parallel()
	var wide, long []string
	for i := range 101 {
		wide = append(wide, fmt.Sprintf(`"k%d":[0]`, i))
		long = append(long, fmt.Sprint(i))
	}
	object := func(n int) string { return "{" + strings.Join(wide[:n], ",") + "}" }
	list := func(n int) string { return "[" + strings.Join(long[:n], ",") + "]" }
	type problems = []fastpubsub.Problem

	tests := []struct {
		reason string
		text   string
		want   string // the filter; empty if it is refused
		errs   problems
	}{
		{"none", ` null `, `null`, nil},
		{"no keys", " { \n} ", `{}`, nil},
		{"white space goes, order stays", `{ "b" : [ "x y" , 1 ], "a":[ true,false ] }`, `{"b":["x y",1],"a":[true,false]}`, nil},
		{"escapes go where they can", `{"\u0061\/":["\u00e9\ud83d\ude00\u0009\u0001\"\\<"]}`, `{"a/":["é😀\t\u0001\"\\<"]}`, nil},
		{"numbers stay as written", `{"a":[1.0,1E+2,-0,1e400]}`, `{"a":[1.0,1E+2,-0,1e400]}`, nil},
		{"repeated values stay", `{"a":[1,1,"1"]}`, `{"a":[1,1,"1"]}`, nil},
		{"the last of duplicate keys, at the place of the first", `{"a":[1],"b":[2],"\u0061":[3]}`, `{"a":[3],"b":[2]}`, nil},
		{"only the last of duplicate keys is looked at", `{"a":5,"a":[3]}`, `{"a":[3]}`, nil},
		{"most keys", object(50), object(50), nil},
		{"most values", `{"a":` + list(100) + `}`, `{"a":` + list(100) + `}`, nil},
		{"largest", `{"a":["` + strings.Repeat("x", 16384-10) + `"]}`, `{"a":["` + strings.Repeat("x", 16384-10) + `"]}`, nil},

		{"too large", `{"a":["` + strings.Repeat("x", 16384-9) + `"]}`, "", problems{{"filter", "too_long", "must have at most 16384 bytes, not 16385"}}},
		{"nothing", ``, "", problems{{"filter", "json_invalid", "must be JSON: unexpected end at offset 0"}}},
		{"no JSON", `{"a":[1}`, "", problems{{"filter", "json_invalid", "must be JSON: unexpected character at offset 7"}}},
		{"list", `[1]`, "", problems{{"filter", "dict_type", "must be an object or null"}}},
		{"NUL", `{"a":["\u0000"]}`, "", problems{{"filter", "value_error", `must not have \u0000 at offset 7`}}},
		{"number too large", `{"a":[1e10001]}`, "", problems{{"filter", "value_error", "must not have exponent over 10000 at offset 6"}}},
		{"too many keys", object(51), "", problems{{"filter", "too_long", "must have at most 50 keys, not 51"}}},
		{"no list", `{"a":"x"}`, "", problems{{"filter.a", "list_type", "must be a list"}}},
		{"null instead of a list", `{"a":null}`, "", problems{{"filter.a", "list_type", "must be a list"}}},
		{"empty list", `{"a":[]}`, "", problems{{"filter.a", "too_short", "must have at least 1 value"}}},
		{"too many values", `{"a":` + list(101) + `}`, "", problems{{"filter.a", "too_long", "must have at most 100 values, not 101"}}},
		{"values of other types", `{"a":[1,null,{},"x",[1]]}`, "", problems{
			{"filter.a.1", "value_error", "must be a string, number or boolean"},
			{"filter.a.2", "value_error", "must be a string, number or boolean"},
			{"filter.a.4", "value_error", "must be a string, number or boolean"},
		}},
		{"everything at once", `{"a":5,"b":[],"c":[null,` + list(101)[1:] + `,"d":["x"],` + object(50)[1:], "", problems{
			{"filter", "too_long", "must have at most 50 keys, not 54"},
			{"filter.a", "list_type", "must be a list"},
			{"filter.b", "too_short", "must have at least 1 value"},
			{"filter.c", "too_long", "must have at most 100 values, not 102"},
			{"filter.c.0", "value_error", "must be a string, number or boolean"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			f, err := fastpubsub.ParseFilter([]byte(tt.text))
			if tt.errs != nil {
				var invalid *fastpubsub.InvalidError
				if !errors.As(err, &invalid) || !errors.Is(err, fastpubsub.ErrInvalid) {
					t.Fatalf("got %v, %v, want an InvalidError", f, err)
				}
				if diff := cmp.Diff(tt.errs, invalid.Problems); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				return
			}
			if err != nil || f.String() != tt.want {
				t.Fatalf("got %v, %v, want %s", f, err, tt.want)
			}
			// What it prints is what it reads.
			if again := parseFilter(t, f.String()); !again.Equal(f) || again.IsZero() != f.IsZero() || again.JSONPath() != f.JSONPath() {
				t.Errorf("%v reads back as %v", f, again)
			}
		})
	}
}

func TestFilterJSONPath(t *testing.T) {
	t.Parallel()
	tests := []struct{ reason, filter, want string }{
		{"none", `null`, ``},
		{"no keys", `{}`, ``},
		{"one comparison for a plain string", `{"a":["x"]}`, `$."a" == "x"`},
		{"a number is a string too", `{"a":[1.50]}`, `$."a" == 15e-1 || $."a" == "1.50"`},
		{"so is a boolean", `{"a":[true]}`, `$."a" == true || $."a" == "true"`},
		{"one comparison for all spellings", `{"a":[1,"1",1.0,"1.0"]}`, `$."a" == 1 || $."a" == "1" || $."a" == "1.0"`},
		{"five strings are searched", `{"a":["c","b","a","e","d"]}`,
			`exists($."a" ? (@.type() == "string" && (@ < "c" && (@ == "a" || @ == "b") || @ >= "c" && (@ == "c" || @ == "d" || @ == "e"))))`},
		{"no number that no payload has", `{"a":["1e99999"]}`, `$."a" == "1e99999"`},
		{"parentheses where needed", `{"a":["x","y"],"b\"":["z"]}`, `($."a" == "x" || $."a" == "y") && $."b\"" == "z"`},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			if got := parseFilter(t, tt.filter).JSONPath(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestFilterJSON(t *testing.T) {
	t.Parallel()
	type subscription struct {
		Filter  fastpubsub.Filter `json:"filter"`
		Omitted fastpubsub.Filter `json:"omitted,omitzero"`
	}
	for _, text := range []string{`{"filter":null}`, `{"filter":{}}`, `{"filter":{"b":["x",1.0],"a":[true]},"omitted":{}}`} {
		var s subscription
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(s)
		if err != nil || string(got) != text {
			t.Errorf("got %s, %v, want %s", got, err, text)
		}
	}
	s := subscription{Filter: parseFilter(t, `{}`)}
	if err := json.Unmarshal([]byte(`{"filter":{"a":1}}`), &s); !errors.Is(err, fastpubsub.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	if s.Filter.String() != `{}` {
		t.Errorf("a refused filter changed %v", s.Filter)
	}
}

func TestInvalidError(t *testing.T) {
	t.Parallel()
	_, err := fastpubsub.ParseFilter([]byte(`{"a":1,"b":[null]}`))
	want := "filter.a: must be a list; filter.b.0: must be a string, number or boolean"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func ExampleFilter_Match() {
	f, err := fastpubsub.ParseFilter([]byte(`{"event": ["order.created"], "priority": [1, 2]}`))
	if err != nil {
		panic(err)
	}
	fmt.Println(f.Match([]byte(`{"event": "order.created", "priority": 2.0}`)))
	fmt.Println(f.Match([]byte(`{"event": "order.created", "priority": 3}`)))
	fmt.Println(f.Match([]byte(`{"event": "order.created"}`)))
	// Output:
	// true
	// false
	// false
}

// filterPairs collects filters and payloads, and asks the database about all of them at once.
type filterPairs struct {
	paths, payloads, filters []string
	want                     []bool
}

// add keeps a pair for check. Filters without a path match everything and need no database.
func (p *filterPairs) add(f fastpubsub.Filter, payload string) {
	if f.JSONPath() == "" {
		return
	}
	p.paths = append(p.paths, f.JSONPath())
	p.payloads = append(p.payloads, payload)
	p.filters = append(p.filters, f.String())
	p.want = append(p.want, f.Match([]byte(payload)))
}

func (p *filterPairs) check(ctx context.Context, t rapid.TB, db *storetest.DB) (matched int) {
	t.Helper()
	const query = `
	SELECT (payload::jsonb @@ path::jsonpath) IS TRUE
	FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS pairs (payload, path, n)
	ORDER BY n`
	rows, err := db.Pool.Query(ctx, query, p.payloads, p.paths)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	i := 0
	for ; rows.Next(); i++ {
		var got bool
		if err := rows.Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != p.want[i] {
			t.Errorf("%s matches %s: Match says %t, the database %t with %s", p.filters[i], p.payloads[i], p.want[i], got, p.paths[i])
		}
		if got {
			matched++
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if i != len(p.want) {
		t.Fatalf("%d answers to %d pairs", i, len(p.want))
	}
	return matched
}

// Every payload of the table against every filter of it.
func TestFilterMatchesAsDatabase(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	var pairs filterPairs
	for _, f := range filterMatches {
		filter := parseFilter(t, f.filter)
		for _, p := range filterMatches {
			if parseFilter(t, `null`).Match([]byte(p.payload)) {
				pairs.add(filter, p.payload)
			}
		}
	}
	pairs.check(t.Context(), t, db)
}

// The generators keep to few keys and values, so that filters and payloads meet.
var (
	genKey = rapid.OneOf(rapid.Just(`a`), rapid.Just(`a`), rapid.Just(`b`), rapid.SampledFrom([]string{
		`a`, `b`, ``, `$a`, `a.b`, `\"\\`, `\u0061`, `é`, `\u00e9`, `\ud83d\ude00`, `😀`, `\u0001\\`, `*`}))

	genNumber = rapid.OneOf(
		rapid.SampledFrom([]string{
			`0`, `-0`, `0.0`, `-0e5`, `0E+7`, `1`, `1.0`, `10e-1`, `0.1e1`, `1E0`, `100`, `1e2`, `1E+2`, `-1`, `-1.0`, `1.5`, `15e-1`, `-1.5`,
			`9007199254740992`, `9007199254740993`, `9007199254740993.0`, `1e400`, `10e399`, `1e-400`, `1e10000`, `10e9999`, `-1e-10000`,
		}),
		rapid.StringMatching(`-?(0|[1-9][0-9]{0,2})(\.[0-9]{1,3})?([eE][+-]?[0-9])?`),
	)

	// Strings that are, or are nearly, the text of something else.
	genString = rapid.OneOf(
		rapid.SampledFrom([]string{``, `x`, `X`, `x `, `\u0078`, `é`, `\u00E9`, `e\u0301`, `😀`, `\uD83D\uDE00`, `\"`, `\\`, `\\u0000`, `\n`, `\u000a`, `\u0001`, `\u0001\\`, `true`,
			`false`, `tr\u0075e`, `True`, `null`, `[]`, `{}`, `NaN`, `Infinity`, ` 1`, `1 `, `+1`, `01`, `1.`, `.5`, `0x1`, `1_0`, `1e`, `\u0031`, `$`, `$.a`, `1e99999`}),
		genNumber,
	)

	genScalar = rapid.OneOf(
		genNumber,
		rapid.Map(genString, func(s string) string { return `"` + s + `"` }),
		rapid.SampledFrom([]string{`true`, `false`}),
	)

	genValue = rapid.OneOf(
		genScalar,
		genScalar,
		rapid.Map(rapid.SliceOfN(rapid.OneOf(
			genScalar,
			rapid.Just(`null`),
			rapid.Map(genScalar, func(s string) string { return `[` + s + `]` }),
			rapid.Map(genScalar, func(s string) string { return `{"a":` + s + `}` }),
		), 0, 4), func(list []string) string { return `[ ` + strings.Join(list, `, `) + `]` }),
		rapid.SampledFrom([]string{`null`, `{}`, `{"a":1}`, `[[]]`}),
	)

	genPayload = rapid.Map(rapid.SliceOfN(genMember(genValue), 0, 6), joinMembers)

	genFilter = rapid.Map(rapid.SliceOfN(genMember(
		rapid.Map(rapid.SliceOfN(genScalar, 1, 40), func(list []string) string { return `[` + strings.Join(list, `,`) + `]` }),
	), 0, 3), joinMembers)
)

func genMember(value *rapid.Generator[string]) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		return `"` + genKey.Draw(t, "key") + `": ` + value.Draw(t, "value")
	})
}

func joinMembers(members []string) string { return `{` + strings.Join(members, `,`) + `}` }

func TestFilterMatchesAsDatabaseProperty(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	ctx := t.Context()
	pairs, matched := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		var p filterPairs
		payloads := rapid.SliceOfN(genPayload, 20, 20).Draw(t, "payloads")
		for _, text := range rapid.SliceOfN(genFilter, 20, 20).Draw(t, "filters") {
			filter, err := fastpubsub.ParseFilter([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			for _, payload := range payloads {
				p.add(filter, payload)
			}
		}
		matched += p.check(ctx, t, db)
		pairs += len(p.want)
	})
	t.Logf("%d of %d pairs match", matched, pairs)
	if matched == 0 {
		t.Error("nothing matches")
	}
}

// FuzzFilter looks for a filter that is accepted and then does not read back as itself, and for a panic in Match.
func FuzzFilter(f *testing.F) {
	for _, m := range filterMatches {
		f.Add([]byte(m.filter), []byte(m.payload))
	}
	f.Fuzz(func(t *testing.T, text, payload []byte) {
		filter, err := fastpubsub.ParseFilter(text)
		if err != nil {
			if !errors.Is(err, fastpubsub.ErrInvalid) || err.Error() == "" {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		again, err := fastpubsub.ParseFilter([]byte(filter.String()))
		if err != nil || !again.Equal(filter) || again.JSONPath() != filter.JSONPath() {
			t.Fatalf("%q is %v, which reads back as %v, %v", text, filter, again, err)
		}
		if filter.Match(payload) != again.Match(payload) {
			t.Fatalf("%v and what it reads back as differ on %q", filter, payload)
		}
	})
}

func BenchmarkFilterMatch(b *testing.B) {
	payload := []byte(`{"id":"0b9e5a54-6b1f-4d5e-9a53-0f6b8b1a2c3d","event":"order.created","amount":129.95,"currency":"EUR",` +
		`"customer":{"id":48213,"country":"BR","premium":true},"items":["a-100","b-200"],"note":"gift wrap"}`)
	for _, bench := range []struct{ name, filter string }{
		{"string", `{"event":["order.created","order.updated"]}`},
		{"number", `{"amount":[129.950]}`},
		{"five-keys", `{"event":["order.created"],"amount":[129.950],"currency":["EUR","USD"],"items":["b-200"],"note":["none"]}`},
	} {
		filter := parseFilter(b, bench.filter)
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				filter.Match(payload)
			}
		})
	}
}
