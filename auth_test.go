package fastpubsub_test

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

const tokenKey = "0123456789abcdef"

// tokenBroker is another broker on the same schema, which issues tokens.
func tokenBroker(t *testing.T, db *storetest.DB, settings fastpubsub.TokenSettings) *fastpubsub.Broker {
	t.Helper()
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Tokens: settings})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTokenSettings(t *testing.T) {
	t.Parallel()
	_, db := newBroker(t)
	for _, test := range []struct {
		reason   string
		settings fastpubsub.TokenSettings
		want     []string // fields
	}{
		{"none", fastpubsub.TokenSettings{}, nil},
		{"a key", fastpubsub.TokenSettings{Key: tokenKey}, nil},
		{"everything", fastpubsub.TokenSettings{Key: fastpubsub.NewSecret(), Algorithm: "HS512", Lifetime: 366 * 24 * time.Hour}, nil},
		{"a short key", fastpubsub.TokenSettings{Key: fastpubsub.Secret(tokenKey[:15])}, []string{"tokens.key"}},
		{"no signature", fastpubsub.TokenSettings{Key: tokenKey, Algorithm: "none"}, []string{"tokens.algorithm"}},
		{"lower case", fastpubsub.TokenSettings{Key: tokenKey, Algorithm: "hs256"}, []string{"tokens.algorithm"}},
		{"a public key", fastpubsub.TokenSettings{Key: tokenKey, Algorithm: "RS256"}, []string{"tokens.algorithm"}},
		{"fractions", fastpubsub.TokenSettings{Key: tokenKey, Lifetime: 1500 * time.Millisecond}, []string{"tokens.lifetime"}},
		{"the past", fastpubsub.TokenSettings{Key: tokenKey, Lifetime: -time.Minute}, []string{"tokens.lifetime"}},
		{"long", fastpubsub.TokenSettings{Key: tokenKey, Lifetime: 367 * 24 * time.Hour}, []string{"tokens.lifetime"}},
		{"all that is wrong", fastpubsub.TokenSettings{Key: "x", Algorithm: "x", Lifetime: 1}, []string{"tokens.key", "tokens.algorithm", "tokens.lifetime"}},
	} {
		_, err := fastpubsub.New(db.Pool, fastpubsub.Config{Tokens: test.settings})
		if diff := gocmp.Diff(test.want, invalidFields(err)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.reason, diff)
		}
		if err != nil && strings.Contains(err.Error(), tokenKey[:15]) {
			t.Errorf("%s: the error has the key: %v", test.reason, err)
		}
	}
}

func TestNoTokensWithoutAKey(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	b.OnHash(func(uint32) { t.Error("a secret was checked") })
	if _, err := b.IssueToken(t.Context(), uuid.NewString(), "password", nil); !errors.Is(err, fastpubsub.ErrNoTokens) {
		t.Errorf("issued: %v", err)
	}
	unsigned, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": uuid.NewString(), "exp": time.Now().Unix() + 9, "ver": 1}).SignedString([]byte(""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.CheckToken(t.Context(), fastpubsub.Secret(unsigned)); !errors.Is(err, fastpubsub.ErrNoTokens) {
		t.Errorf("checked: %v", err)
	}
}

// What a token says is all that clients and other implementations go by.
func TestTokenClaims(t *testing.T) {
	t.Parallel()
	_, db := newBroker(t)
	for algorithm, lifetime := range map[string]time.Duration{"": 0, "HS256": time.Minute, "HS384": time.Hour, "HS512": 24 * time.Hour} {
		b := tokenBroker(t, db, fastpubsub.TokenSettings{Key: tokenKey, Algorithm: algorithm, Lifetime: lifetime})
		c := fastpubsub.Client{ID: uuid.New(), Name: "c", Scopes: fastpubsub.Scopes{"topics:read", "topics:publish:orders"}, Active: true, TokenVersion: 3}
		if err := b.ImportClient(t.Context(), c, cheapHash); err != nil {
			t.Fatal(err)
		}
		before := time.Now().Unix()
		token, err := b.IssueToken(t.Context(), strings.ToUpper(c.ID.String()), "password", nil)
		if err != nil {
			t.Fatal(err)
		}
		algorithm, lifetime = cmp.Or(algorithm, "HS256"), cmp.Or(lifetime, 30*time.Minute)
		if token.Lifetime != lifetime || !slices.Equal(token.Scopes, c.Scopes) {
			t.Errorf("%s: issued %+v, want %v", algorithm, token, lifetime)
		}
		parts := strings.Split(string(token.AccessToken), ".")
		if len(parts) != 3 {
			t.Fatalf("the token has %d parts", len(parts))
		}
		var head, said map[string]any
		for i, into := range []*map[string]any{&head, &said} {
			text, err := base64.RawURLEncoding.DecodeString(parts[i])
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, into); err != nil {
				t.Fatal(err)
			}
		}
		if diff := gocmp.Diff(map[string]any{"alg": algorithm, "typ": "JWT"}, head); diff != "" {
			t.Errorf("header (-want +got):\n%s", diff)
		}
		issued, _ := said["iat"].(float64)
		want := map[string]any{"sub": c.ID.String(), "iat": issued, "exp": issued + lifetime.Seconds(), "scope": "topics:read topics:publish:orders", "ver": 3.0}
		if diff := gocmp.Diff(want, said); diff != "" || int64(issued) < before || int64(issued) > time.Now().Unix() {
			t.Errorf("claims, since %v (-want +got):\n%s", before, diff)
		}
		caller, err := b.CheckToken(t.Context(), token.AccessToken)
		if diff := gocmp.Diff(fastpubsub.Caller{ClientID: c.ID, Scopes: c.Scopes}, caller); diff != "" || err != nil {
			t.Errorf("caller, %v (-want +got):\n%s", err, diff)
		}
	}
}

// Whatever is wrong with credentials, one hash is computed, with the memory of any, and the answer is the same.
func TestCredentials(t *testing.T) {
	t.Parallel()
	_, db := newBroker(t)
	var logged bytes.Buffer
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Tokens: fastpubsub.TokenSettings{Key: tokenKey}, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	if err != nil {
		t.Fatal(err)
	}
	var computed []uint32
	b.OnHash(func(memory uint32) { computed = append(computed, memory) })
	client, secret, err := b.CreateClient(t.Context(), fastpubsub.NewClient{Name: "c", Scopes: fastpubsub.Scopes{"topics:read", "topics:publish"}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(computed, []uint32{64 << 10}) {
		t.Errorf("creating a client computed %v", computed)
	}
	imported := func(active bool, hash string) string {
		id := uuid.New()
		if err := b.ImportClient(t.Context(), fastpubsub.Client{ID: id, Name: "c", Scopes: fastpubsub.Scopes{"*"}, Active: active}, fastpubsub.Secret(hash)); err != nil {
			t.Fatal(err)
		}
		return id.String()
	}
	good := query[string](t, db, `SELECT secret_hash FROM {schema}.clients WHERE id = $1::text::uuid`, client.ID.String())
	inactive := imported(false, good)
	broken := imported(true, good)
	exec(t, db, `UPDATE {schema}.clients SET secret_hash = '$argon2id$v=19$m=999999999,t=3,p=4$c29tZXNhbHQ$AAAA' WHERE id = $1::text::uuid`, broken)
	id := client.ID.String()
	for _, test := range []struct {
		reason, id string
		secret     fastpubsub.Secret
		scopes     fastpubsub.Scopes
		want       error
	}{
		{"good", id, secret, nil, nil},
		{"fewer scopes", id, secret, fastpubsub.Scopes{"topics:publish:orders"}, nil},
		{"more scopes", id, secret, fastpubsub.Scopes{"topics:read", "topics:delete"}, fastpubsub.ErrScope},
		{"wrong secret", id, secret + "x", nil, fastpubsub.ErrCredentials},
		{"wrong secret, more scopes", id, "x", fastpubsub.Scopes{"*"}, fastpubsub.ErrCredentials},
		{"no secret", id, "", nil, fastpubsub.ErrCredentials},
		{"the hash for a secret", id, fastpubsub.Secret(good), nil, fastpubsub.ErrCredentials},
		{"nobody", uuid.NewString(), secret, nil, fastpubsub.ErrCredentials},
		{"not an id", "me", secret, nil, fastpubsub.ErrCredentials},
		{"no id", "", "", nil, fastpubsub.ErrCredentials},
		{"NUL", "\x00", secret, nil, fastpubsub.ErrCredentials},
		{"inactive, good secret", inactive, secret, nil, fastpubsub.ErrCredentials},
		{"inactive, wrong secret", inactive, "x", nil, fastpubsub.ErrCredentials},
		{"a hash that would take all memory", broken, secret, nil, fastpubsub.ErrCredentials},
	} {
		computed = nil
		token, err := b.IssueToken(t.Context(), test.id, test.secret, test.scopes)
		if !errors.Is(err, test.want) || (err == nil) != (token.AccessToken != "") {
			t.Errorf("%s: %v, want %v", test.reason, err, test.want)
		}
		if test.want == fastpubsub.ErrCredentials && err.Error() != "issue token: invalid client credentials" {
			t.Errorf("%s is told apart: %v", test.reason, err)
		}
		if !slices.Equal(computed, []uint32{64 << 10}) {
			t.Errorf("%s computed %v", test.reason, computed)
		}
		if test.scopes != nil && err == nil && !slices.Equal(token.Scopes, test.scopes) {
			t.Errorf("%s: the token is for %v", test.reason, token.Scopes)
		}
	}
	if log := logged.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, broken) || strings.Contains(log, "$argon2id") || strings.Contains(log, string(secret)) {
		t.Errorf("the log is to name the client whose hash is broken, and no more: %s", log)
	}
}

// A hash from elsewhere has its own parameters.
func TestImportedCredentials(t *testing.T) {
	t.Parallel()
	_, db := newBroker(t)
	b := tokenBroker(t, db, fastpubsub.TokenSettings{Key: tokenKey})
	var computed []uint32
	b.OnHash(func(memory uint32) { computed = append(computed, memory) })
	id := uuid.New()
	if err := b.ImportClient(t.Context(), fastpubsub.Client{ID: id, Name: "c", Scopes: fastpubsub.Scopes{"*"}, Active: true}, cheapHash); err != nil {
		t.Fatal(err)
	}
	if _, err := b.IssueToken(t.Context(), id.String(), "password", nil); err != nil {
		t.Error(err)
	}
	if _, err := b.IssueToken(t.Context(), id.String(), "Password", nil); !errors.Is(err, fastpubsub.ErrCredentials) {
		t.Errorf("another secret: %v", err)
	}
	if !slices.Equal(computed, []uint32{256, 256}) {
		t.Errorf("computed %v", computed)
	}
}

// What is no token costs no look at the database, and one that is good is not good without it.
func TestCheckTokenWithoutADatabase(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://u:p@127.0.0.1:1/d")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b, err := fastpubsub.New(pool, fastpubsub.Config{Tokens: fastpubsub.TokenSettings{Key: tokenKey}})
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key string, claims jwt.MapClaims) fastpubsub.Secret {
		all := jwt.MapClaims{"sub": uuid.NewString(), "exp": time.Now().Add(time.Hour).Unix(), "ver": 1, "scope": "*"}
		maps.Copy(all, claims)
		signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, all).SignedString([]byte(key))
		if err != nil {
			t.Fatal(err)
		}
		return fastpubsub.Secret(signed)
	}
	for _, test := range []struct {
		token fastpubsub.Secret
		want  string
	}{
		{"", "malformed"},
		{"a.b.c", "malformed"},
		{fastpubsub.Secret(strings.Repeat("x", 8193)), "more than 8192 bytes"},
		{sign("another key, of 16 bytes and more", nil), "another key or algorithm"},
		{sign("another key, of 16 bytes and more", jwt.MapClaims{"exp": 1}), "another key or algorithm"},
		{sign(tokenKey, jwt.MapClaims{"exp": time.Now().Add(-time.Second).Unix()}), "expired"},
		{sign(tokenKey, jwt.MapClaims{"sub": "admin"}), "malformed"},
		{sign(tokenKey, jwt.MapClaims{"ver": 1.5}), "malformed"},
	} {
		_, err := b.CheckToken(t.Context(), test.token)
		if !errors.Is(err, fastpubsub.ErrToken) || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%v, want it to be %s", err, test.want)
		}
	}
	if _, err := b.CheckToken(t.Context(), sign(tokenKey, nil)); err == nil || errors.Is(err, fastpubsub.ErrToken) {
		t.Errorf("a good one: %v", err)
	}
	if _, err := b.IssueToken(t.Context(), uuid.NewString(), "x", nil); err == nil || errors.Is(err, fastpubsub.ErrCredentials) {
		t.Errorf("issued: %v", err)
	}
}
