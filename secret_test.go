package fastpubsub_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub"
)

func TestSecretIsNotShown(t *testing.T) {
	t.Parallel()
	secret := fastpubsub.NewSecret()
	text := string(secret)
	if len(text) != 32 || strings.Trim(text, "0123456789abcdef") != "" || secret == fastpubsub.NewSecret() {
		t.Errorf("the secret is %q", text)
	}
	var shown bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%20s"} {
		fmt.Fprintf(&shown, verb+verb+verb+"\n", secret, struct{ Secret fastpubsub.Secret }{secret}, []fastpubsub.Secret{secret})
	}
	fmt.Fprint(&shown, secret, secret.String(), fmt.Errorf("with %v", secret))
	for _, v := range []any{secret, &secret, map[string]fastpubsub.Secret{"k": secret},
		fastpubsub.Token{AccessToken: secret}, fastpubsub.TokenSettings{Key: secret}, fastpubsub.Config{Tokens: fastpubsub.TokenSettings{Key: secret}}.Tokens} {
		encoded, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		shown.Write(encoded)
		for _, handler := range []slog.Handler{slog.NewTextHandler(&shown, nil), slog.NewJSONHandler(&shown, nil)} {
			slog.New(handler).Info("test", "secret", v)
		}
	}
	for _, form := range []string{text, fmt.Sprintf("%x", text), fmt.Sprintf("%X", text), base64.StdEncoding.EncodeToString([]byte(text))} {
		if strings.Contains(shown.String(), form) {
			t.Errorf("the secret is shown: %s", &shown)
		}
	}
	if n := strings.Count(shown.String(), "[secret]"); n < 40 {
		t.Errorf("there are only %d places that say there is a secret: %s", n, &shown)
	}
}

const (
	salt16 = "c29tZXNhbHRzb21lc2FsdA"
	hash32 = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)

// phcHashes are hashes, and whether they are taken.
var phcHashes = []struct {
	reason, text string
	ok           bool
}{
	{"as we make them", "$argon2id$v=19$m=65536,t=3,p=4$" + salt16 + "$" + hash32, true},
	{"the least", "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", true},
	{"the most", "$argon2id$v=19$m=131072,t=10,p=16$" + salt16 + "$" + hash32, true},
	{"100 MiB, 8 threads, 16 bytes, as libraries once made them", "$argon2id$v=19$m=102400,t=2,p=8$" + salt16 + "$AAAAAAAAAAAAAAAAAAAAAA", true},
	{"nothing", "", false},
	{"another argon2", "$argon2i$v=19$m=65536,t=3,p=4$" + salt16 + "$" + hash32, false},
	{"another function", "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW", false},
	{"an older version", "$argon2id$v=16$m=65536,t=3,p=4$" + salt16 + "$" + hash32, false},
	{"no version", "$argon2id$m=65536,t=3,p=4$" + salt16 + "$" + hash32, false},
	{"too much memory", "$argon2id$v=19$m=131073,t=3,p=4$" + salt16 + "$" + hash32, false},
	{"all memory", "$argon2id$v=19$m=4294967295,t=1,p=1$" + salt16 + "$" + hash32, false},
	{"beyond a number", "$argon2id$v=19$m=99999999999999999999,t=1,p=1$" + salt16 + "$" + hash32, false},
	{"less memory than threads need", "$argon2id$v=19$m=31,t=1,p=4$" + salt16 + "$" + hash32, false},
	{"no passes", "$argon2id$v=19$m=65536,t=0,p=4$" + salt16 + "$" + hash32, false},
	{"many passes", "$argon2id$v=19$m=65536,t=11,p=4$" + salt16 + "$" + hash32, false},
	{"no threads", "$argon2id$v=19$m=65536,t=3,p=0$" + salt16 + "$" + hash32, false},
	{"many threads", "$argon2id$v=19$m=65536,t=3,p=17$" + salt16 + "$" + hash32, false},
	{"threads beyond a byte", "$argon2id$v=19$m=65536,t=3,p=257$" + salt16 + "$" + hash32, false},
	{"leading zero", "$argon2id$v=19$m=065536,t=3,p=4$" + salt16 + "$" + hash32, false},
	{"plus", "$argon2id$v=19$m=+65536,t=3,p=4$" + salt16 + "$" + hash32, false},
	{"negative", "$argon2id$v=19$m=65536,t=-3,p=4$" + salt16 + "$" + hash32, false},
	{"another order", "$argon2id$v=19$t=3,m=65536,p=4$" + salt16 + "$" + hash32, false},
	{"more parameters", "$argon2id$v=19$m=65536,t=3,p=4,keyid=1$" + salt16 + "$" + hash32, false},
	{"a short salt", "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbA$" + hash32, false},
	{"a long salt", "$argon2id$v=19$m=65536,t=3,p=4$" + strings.Repeat(hash32, 3)[:88] + "$" + hash32, false},
	{"a short hash", "$argon2id$v=19$m=65536,t=3,p=4$" + salt16 + "$AAAAAAAAAAAAAAAAAAAA", false},
	{"no hash", "$argon2id$v=19$m=65536,t=3,p=4$" + salt16 + "$", false},
	{"no salt", "$argon2id$v=19$m=65536,t=3,p=4$" + hash32, false},
	{"padding", "$argon2id$v=19$m=65536,t=3,p=4$" + salt16 + "==$" + hash32, false},
	{"bits behind the end", "$argon2id$v=19$m=65536,t=3,p=4$" + salt16 + "$" + hash32[:42] + "B", false},
	{"a line break", "$argon2id$v=19$m=65536,t=3,p=4$" + salt16 + "$" + hash32 + "\n", false},
	{"text behind it", "$argon2id$v=19$m=65536,t=3,p=4$" + salt16 + "$" + hash32 + "$x", false},
}

func TestParseSecretHash(t *testing.T) {
	t.Parallel()
	for _, test := range phcHashes {
		got, err := fastpubsub.ParseSecretHash(test.text)
		if (err == nil) != test.ok || test.ok && got != test.text {
			t.Errorf("%s: %q, %v", test.reason, got, err)
		}
		if err != nil && test.text != "" && strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: the error repeats the hash", test.reason)
		}
	}
}

func TestParseSecretHashProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		threads := rapid.IntRange(0, 20).Draw(t, "threads")
		memory := rapid.IntRange(0, 140_000).Draw(t, "memory")
		passes := rapid.IntRange(0, 12).Draw(t, "passes")
		salt := rapid.SliceOfN(rapid.Byte(), 0, 70).Draw(t, "salt")
		hash := rapid.SliceOfN(rapid.Byte(), 0, 70).Draw(t, "hash")
		text := fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", memory, passes, threads,
			base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(hash))
		want := memory <= 131_072 && memory >= 8*threads && passes >= 1 && passes <= 10 && threads >= 1 && threads <= 16 &&
			len(salt) >= 8 && len(salt) <= 64 && len(hash) >= 16 && len(hash) <= 64
		got, err := fastpubsub.ParseSecretHash(text)
		if (err == nil) != want || want && got != text {
			t.Errorf("%s: %s, %v, want %v", text, got, err, want)
		}
	})
}

func FuzzParseSecretHash(f *testing.F) {
	for _, test := range phcHashes {
		f.Add(test.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		// There is one way to write a hash.
		if got, err := fastpubsub.ParseSecretHash(text); err == nil && got != text {
			t.Errorf("%q is %q", text, got)
		}
	})
}

// As many as may be are computed at once, the others wait, and who goes away does so at once.
func TestHashesAtOnce(t *testing.T) {
	t.Parallel()
	for cores, want := range map[int]int{1: 1, 2: 1, 7: 1, 8: 2, 64: 2} {
		if got := fastpubsub.HashesAtOnce(cores); got != want {
			t.Errorf("%d at once on %d cores, want %d", got, cores, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // protects running, most and computed
		running, most, computed := 0, 0, 0
		finish := make(chan struct{})
		verify := fastpubsub.NewHasher(2, func() []byte {
			mu.Lock()
			running++
			computed++
			most = max(most, running)
			mu.Unlock()
			<-finish
			mu.Lock()
			running--
			mu.Unlock()
			return make([]byte, 32) // the right one
		})
		var wg sync.WaitGroup
		results := make(chan error, 10)
		for range 10 {
			wg.Go(func() {
				ok, err := verify(t.Context())
				if ok != (err == nil) {
					t.Errorf("verified: %v, %v", ok, err)
				}
				results <- err
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context()) // it comes when the others are there
		canceled := make(chan error, 1)
		wg.Go(func() {
			_, err := verify(ctx)
			canceled <- err
		})
		synctest.Wait()
		if running != 2 {
			t.Errorf("%d run at once", running)
		}
		cancel()
		if err := <-canceled; !errors.Is(err, context.Canceled) {
			t.Errorf("who was cancelled got %v", err)
		}
		if _, err := verify(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("who came cancelled got %v", err)
		}
		for range 4 { // of ten
			finish <- struct{}{}
		}
		synctest.Wait()
		before := time.Now()
		for range 4 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		for range 4 { // two still run
			if err := <-results; !errors.Is(err, fastpubsub.ErrBusy) {
				t.Errorf("who waited too long got %v", err)
			}
		}
		if waited := time.Since(before); waited > fastpubsub.HashWait {
			t.Errorf("they waited for %v", waited)
		}
		close(finish)
		wg.Wait()
		if most != 2 || running != 0 || computed != 6 {
			t.Errorf("%d ran at once at most, %d still do, %d were computed", most, running, computed)
		}
	})
}
