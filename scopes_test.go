package fastpubsub_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub"
)

func TestParseScopes(t *testing.T) {
	t.Parallel()
	const id = "01890a5d-ac96-774b-bcce-b302099a8057"
	longest := strings.Repeat("x", 128)
	for _, test := range []struct {
		text string
		want string // empty if it is refused
		bad  int    // problems
	}{
		{"*", "*", 0},
		{"topics:create topics:read topics:delete topics:publish", "topics:create topics:read topics:delete topics:publish", 0},
		{"subscriptions:create subscriptions:read subscriptions:delete subscriptions:consume",
			"subscriptions:create subscriptions:read subscriptions:delete subscriptions:consume", 0},
		{"clients:create clients:update clients:read clients:delete", "clients:create clients:update clients:read clients:delete", 0},
		{" \ttopics:read\n topics:read * ", "topics:read *", 0},
		{"topics:publish:my-topic.1_ subscriptions:consume:" + longest, "topics:publish:my-topic.1_ subscriptions:consume:" + longest, 0},
		{"clients:read:" + strings.ToUpper(id) + " clients:read:" + id, "clients:read:" + id, 0},
		{"", "", 1},
		{" \n", "", 1},
		{"**", "", 1},
		{"*:read", "", 1},
		{"topics", "", 1},
		{"topics:", "", 1},
		{"topics:*", "", 1},
		{"topics:consume", "", 1},
		{"topics:update", "", 1},
		{"subscriptions:publish", "", 1},
		{"Topics:read", "", 1},
		{"topics:read,topics:create", "", 1},
		{"messages:read", "", 1},
		{"topics:read:", "", 1},
		{"topics:read:.. topics:read:.", "", 2},
		{"topics:read:a:b", "", 1},
		{"topics:read:*", "", 1},
		{"topics:read:é", "", 1},
		{"topics:read:" + longest + "x", "", 1},
		{"topics:create:x subscriptions:create:x clients:create:" + id, "", 3},
		{"clients:read:x", "", 1},
		{"topics:read x y z", "", 3},
		{"topics:read\x00", "", 1},
		{"\xff", "", 1},
		{strings.Repeat("x ", 2049), "", 1},
	} {
		scopes, err := fastpubsub.ParseScopes(test.text)
		if got := scopes.String(); test.bad == 0 && got != test.want {
			t.Errorf("%q is %q, want %q", test.text, got, test.want)
		}
		if n := len(invalidFields(err)); n != test.bad || n > 0 && !errors.Is(err, fastpubsub.ErrInvalid) {
			t.Errorf("%q: %v, want %d problems", test.text, err, test.bad)
		}
	}
	for n, ok := range map[int]bool{4096: true, 4097: false} {
		text := strings.Repeat("topics:read:"+longest+" ", 28) // 141 bytes each
		text += "subscriptions:consume:" + strings.Repeat("y", n-len(text)-len("subscriptions:consume:"))
		if _, err := fastpubsub.ParseScopes(text); (err == nil) != ok || len(text) != n {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
}

func TestHasScope(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		scopes, wanted string
		has            bool
	}{
		{"*", "topics:read", true},
		{"*", "topics:read:x", true},
		{"*", "*", true},
		{"topics:read", "topics:read", true},
		{"topics:read", "topics:read:x", true},
		{"topics:read", "topics:read:x:y", true},
		{"topics:read", "topics", false},
		{"topics:read", "topics:publish", false},
		{"topics:read", "*", false},
		{"topics:read:x", "topics:read:x", true},
		{"topics:read:x", "topics:read:X", false},
		{"topics:read:x", "topics:read:xy", false},
		{"topics:read:x", "topics:read", false},
		{"topics:read:x", "topics:read:", false},
		{"topics:read:x", "topics:read:x:y", false},
		{"subscriptions:read", "topics:read", false},
		{"topics:read topics:publish:x", "topics:publish:x", true},
	} {
		if got := fastpubsub.Scopes(strings.Fields(test.scopes)).Has(test.wanted); got != test.has {
			t.Errorf("%q has %q: %v, want %v", test.scopes, test.wanted, got, test.has)
		}
	}
	if fastpubsub.Scopes(nil).Has("") || fastpubsub.Scopes(nil).Has("topics:read") {
		t.Error("no scopes are something")
	}
	missing := fastpubsub.Scopes{"topics:read", "clients:read:x"}.Missing(fastpubsub.Scopes{"topics:read:x", "clients:read", "*"})
	if diff := cmp.Diff(fastpubsub.Scopes{"clients:read", "*"}, missing); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
}

func genScope() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		parts := []string{
			rapid.SampledFrom([]string{"topics", "subscriptions", "clients", "*", "messages", ""}).Draw(t, "resource"),
			rapid.SampledFrom([]string{"create", "read", "update", "delete", "publish", "consume", "*", ""}).Draw(t, "action"),
			rapid.OneOf(rapid.StringMatching(`[a-z.:*]{0,3}`), rapid.Just("01890a5d-ac96-774b-bcce-b302099a8057")).Draw(t, "id"),
		}
		return strings.Join(parts[:rapid.IntRange(1, 3).Draw(t, "parts")], ":")
	})
}

// What is accepted reads back as it is stored, and lets nobody do what a plain reading of it does not say.
func TestScopesProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(genScope(), 0, 6).Draw(t, "scopes")
		text := strings.Join(words, rapid.SampledFrom([]string{" ", "  ", "\n", " \t"}).Draw(t, "space"))
		scopes, err := fastpubsub.ParseScopes(text)
		if err != nil {
			return
		}
		checkStored(t, scopes)
		wanted := genScope().Draw(t, "wanted")
		plain := slices.ContainsFunc(scopes, func(s string) bool {
			return s == "*" || s == wanted || strings.Count(s, ":") == 1 && strings.HasPrefix(wanted, s+":")
		})
		if got := scopes.Has(wanted); got != plain {
			t.Errorf("%q has %q: %v", scopes, wanted, got)
		}
		if missing := scopes.Missing(scopes); len(missing) > 0 {
			t.Errorf("%q lacks %q, which is among it", scopes, missing)
		}
	})
}

// checkStored checks what is true of scopes that ParseScopes returned.
func checkStored(t interface{ Errorf(string, ...any) }, scopes fastpubsub.Scopes) {
	again, err := fastpubsub.ParseScopes(scopes.String())
	if diff := cmp.Diff(scopes, again); diff != "" || err != nil {
		t.Errorf("%q reads back differently, %v (-want +got):\n%s", scopes, err, diff)
	}
	if len(scopes) == 0 || len(scopes.String()) > 4096 || len(slices.Compact(slices.Sorted(slices.Values(scopes)))) != len(scopes) {
		t.Errorf("%q must not be stored", scopes)
	}
	for _, s := range scopes {
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			t.Errorf("%q has characters that headers do not", s)
		}
	}
}

func FuzzParseScopes(f *testing.F) {
	for _, text := range []string{"*", "topics:read topics:publish:x", "clients:read:{01890a5d-ac96-774b-bcce-b302099a8057}", "topics:create:x", " \u2003*", "\xff"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		scopes, err := fastpubsub.ParseScopes(text)
		if err == nil {
			checkStored(t, scopes)
		} else if len(invalidFields(err)) == 0 || len(scopes) > len(text) {
			t.Errorf("%q: %v", text, err)
		}
	})
}

func ExampleScopes_Has() {
	scopes, err := fastpubsub.ParseScopes("topics:read topics:publish:orders")
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println(scopes.Has("topics:read"), scopes.Has("topics:read:orders"))
	fmt.Println(scopes.Has("topics:publish"), scopes.Has("topics:publish:orders"))
	// Output:
	// true true
	// false true
}
