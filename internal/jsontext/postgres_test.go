package jsontext_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub/internal/jsontext"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// genAny makes JSON up to a few levels deep, with a part here and there that is wrong or that jsonb does not take.
func genAny(depth int) *rapid.Generator[string] {
	scalar := rapid.OneOf(
		rapid.StringMatching(`-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,6})?`),
		rapid.SampledFrom([]string{`true`, `false`, `null`, `0`, `-0`, `1e10000`, `1e-10000`, `0e-10000`, `1e131071`, `1e-16383`, `1e-16384`,
			`-`, `01`, `1.`, `.1`, `NaN`, `-Infinity`, `tru`, `nulls`, `''`,
			strings.Repeat("9", 1000), "0." + strings.Repeat("9", 998), strings.Repeat("9", 994) + "e10000", "0." + strings.Repeat("1", 990) + "e-10000"}),
		genQuoted,
	)
	if depth == 0 {
		return scalar
	}
	inner := genAny(depth - 1)
	space := rapid.SampledFrom([]string{"", "", "", " ", "\n\t\r ", "\v", "\u00a0"})
	return rapid.OneOf(scalar, rapid.Custom(func(t *rapid.T) string {
		return `[` + space.Draw(t, "space") + strings.Join(rapid.SliceOfN(inner, 0, 4).Draw(t, "elements"), `,`) + `]`
	}), rapid.Custom(func(t *rapid.T) string { return genObject(inner).Draw(t, "object") + space.Draw(t, "space") }))
}

func genObject(value *rapid.Generator[string]) *rapid.Generator[string] {
	member := rapid.Custom(func(t *rapid.T) string { return genQuoted.Draw(t, "key") + `:` + value.Draw(t, "value") })
	return rapid.Map(rapid.SliceOfN(member, 0, 5), func(members []string) string { return `{` + strings.Join(members, `,`) + `}` })
}

var genQuoted = rapid.Map(rapid.SliceOfN(rapid.OneOf(
	rapid.SampledFrom([]string{`a`, `b`, `é`, `😀`, "\x7f", "\ufeff", "\U0010ffff", `\u00e9`, `\ud83d\ude00`, `\n`, `\"`, `\\`, `\/`, `\uFFFF`}),
	rapid.SampledFrom([]string{`a`, `b`, `\ud83d`, `\ude00`, `\u0000`, `\u0001`, `\x41`, `\u12`, "\x01", "\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80"}),
	rapid.StringN(0, 3, -1),
), 0, 3), func(parts []string) string { return `"` + strings.Join(parts, ``) + `"` })

// Whatever is accepted casts to jsonb.
func TestAcceptedCasts(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	ctx := t.Context()
	generated, accepted := 0, 0
	cast := func(t rapid.TB, texts []string) {
		const query = `SELECT count(*) FROM unnest($1::text[]) AS text WHERE jsonb_typeof(text::jsonb) = 'object'`
		var n int
		if err := db.Pool.QueryRow(ctx, query, texts).Scan(&n); err != nil {
			t.Fatalf("%v: one of %q", err, texts)
		}
		if n != len(texts) {
			t.Fatalf("%d of %d are objects: %q", n, len(texts), texts)
		}
	}

	digits := func(n int) string { return strings.Repeat("9", n) }
	cast(t, []string{
		nested(jsontext.MaxDepth),
		`{"a":` + digits(994) + `e10000}`,
		`{"a":-0.` + digits(990) + `e-10000}`,
		`{"a":0.` + strings.Repeat("0", 990) + `e-10000}`,
		fmt.Sprintf(`{"%s":1}`, strings.Repeat("k", 1<<20)),
		`{"` + strings.Repeat(`\u00e9`, 1<<16) + `":"` + strings.Repeat("\x7f", 1<<16) + `"}`,
	})

	object := genObject(genAny(2))
	rapid.Check(t, func(t *rapid.T) {
		var texts []string
		for _, text := range rapid.SliceOfN(object, 100, 100).Draw(t, "objects") {
			generated++
			if jsontext.CheckObject([]byte(text)) == nil {
				texts = append(texts, text)
			}
		}
		accepted += len(texts)
		cast(t, texts)
	})
	t.Logf("%d of %d accepted", accepted, generated)
	if accepted == 0 || accepted == generated {
		t.Error("the generator is one-sided")
	}
}

// The texts with the most elements and members for their size are the hardest on jsonb.
func TestLargestCasts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a gigabyte of memory on the server")
	}
	db := storetest.New(t)
	for _, tt := range []struct{ reason, open, element, closing string }{
		{"elements", `{"a":[`, `1,`, `1]}`},
		{"members", `{`, `"":1,`, `"":1}`},
		{"one string", `{"a":"`, `x`, `"}`},
	} {
		n := (jsontext.MaxSize - len(tt.open) - len(tt.closing)) / len(tt.element)
		text := tt.open + strings.Repeat(tt.element, n) + tt.closing
		if err := jsontext.CheckObject([]byte(text)); err != nil {
			t.Fatalf("%s: %v", tt.reason, err)
		}
		var size int
		if err := db.Pool.QueryRow(t.Context(), `SELECT pg_column_size($1::text::jsonb)`, text).Scan(&size); err != nil {
			t.Fatalf("%s: %v", tt.reason, err)
		}
		t.Logf("%s: %d bytes of text are %d of jsonb", tt.reason, len(text), size)
	}
}
