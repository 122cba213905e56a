package main

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestGenerateSecretKey(t *testing.T) {
	t.Parallel()
	line := regexp.MustCompile(`^new_secret=[0-9a-f]{32}\n$`)
	var keys []string
	for _, command := range []string{"generate_secret_key", "generate-secret-key"} {
		code, stdout, stderr := execute(t.Context(), command)
		if code != 0 || !line.MatchString(stdout) || stderr != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", command, code, stdout, stderr)
		}
		keys = append(keys, stdout)
	}
	if keys[0] == keys[1] {
		t.Error("the keys are the same")
	}
}

func TestAuthSettings(t *testing.T) {
	t.Parallel()
	const generate = "; fastpubsub generate_secret_key makes one"
	for _, test := range []struct {
		reason  string
		flags   []string
		want    fastpubsub.TokenSettings
		enabled bool
		bad     []string
	}{
		{"off", nil, fastpubsub.TokenSettings{Algorithm: "HS256", Lifetime: 30 * time.Minute}, false, nil},
		{"off, with a key that would not do", []string{"--auth-enabled=False", "--auth-secret-key=short"},
			fastpubsub.TokenSettings{Algorithm: "HS256", Lifetime: 30 * time.Minute}, false, nil},
		{"on", []string{"--auth-enabled=true", "--auth-secret-key=0123456789abcdef"},
			fastpubsub.TokenSettings{Key: "0123456789abcdef", Algorithm: "HS256", Lifetime: 30 * time.Minute}, true, nil},
		{"all of them", []string{"--auth-enabled=1", "--auth-secret-key=0123456789abcdef", "--auth-algorithm=HS512", "--auth-access-token-expire-minutes=527040"},
			fastpubsub.TokenSettings{Key: "0123456789abcdef", Algorithm: "HS512", Lifetime: 366 * 24 * time.Hour}, true, nil},
		{"no key", []string{"--auth-enabled=true"}, fastpubsub.TokenSettings{}, true,
			[]string{"FASTPUBSUB_AUTH_SECRET_KEY: must be set where FASTPUBSUB_AUTH_ENABLED is true" + generate}},
		{"a short key", []string{"--auth-enabled=true", "--auth-secret-key=0123456789abcde"}, fastpubsub.TokenSettings{}, true,
			[]string{"FASTPUBSUB_AUTH_SECRET_KEY: must have at least 16 bytes, not 15" + generate}},
		{"all that is wrong", []string{"--auth-enabled=maybe", "--auth-algorithm=none", "--auth-access-token-expire-minutes=0"}, fastpubsub.TokenSettings{}, false, []string{
			`FASTPUBSUB_AUTH_ENABLED: must be true or false, not "maybe"`,
			`FASTPUBSUB_AUTH_ALGORITHM: must be HS256, HS384 or HS512, not "none"`,
			`FASTPUBSUB_AUTH_ACCESS_TOKEN_EXPIRE_MINUTES: must be an integer from 1 to 527040, not "0"`,
		}},
	} {
		c := parse(t, append([]string{"--database-url=postgres://h/d"}, test.flags...)...)
		var bad badSettings
		got, enabled := c.tokens(&bad)
		if diff := cmp.Diff(test.bad, []string(bad)); diff != "" {
			t.Errorf("%s: problems (-want +got):\n%s", test.reason, diff)
		}
		if test.bad != nil {
			continue
		}
		if got != test.want || enabled != test.enabled {
			t.Errorf("%s: %+v, %v, want %+v, %v", test.reason, got, enabled, test.want, test.enabled)
		}
		pool := storetest.New(t).Pool
		if _, err := fastpubsub.New(pool, fastpubsub.Config{Tokens: got}); err != nil {
			t.Errorf("%s: the broker refuses them: %v", test.reason, err)
		}
	}
}

// A server that would let everybody in, or nobody, does not start; and no key is repeated.
func TestServerRefusesToStart(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := execute(t.Context(), "server", "--database-url="+nowhere, "--auth-enabled=true", "--auth-secret-key=secret-in-short")
	if code != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "fastpubsub: FASTPUBSUB_AUTH_SECRET_KEY: ") ||
		strings.Contains(stderr, "secret-in") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestCreateClientRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		reason string
		args   []string
		code   int
		stderr []string // how each line begins
	}{
		{"no name", []string{}, 2, []string{`fastpubsub: expected "<name>"`}},
		{"a shell that made files of *", []string{"c", "a.txt", "b.txt", "c.txt"}, 2, []string{"fastpubsub: unexpected argument c.txt"}},
		{"all that is wrong", []string{" ", "topics:write topics:create:x", "maybe"}, 2, []string{
			"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set",
			"fastpubsub: NAME: must not be empty",
			`fastpubsub: SCOPES: "topics:write": `,
			`fastpubsub: SCOPES: "topics:create:x": `,
			`fastpubsub: IS_ACTIVE: must be true or false, not "maybe"`,
		}},
		{"no scopes", []string{"c", "", "--database-url=" + nowhere}, 2, []string{"fastpubsub: SCOPES: must have at least 1 scope"}},
		{"a URL", []string{nowhere}, 2, []string{"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set",
			"fastpubsub: NAME: must not be a URL; a database URL belongs in FASTPUBSUB_DATABASE_URL"}},
		{"a long name", []string{strings.Repeat("x", 257), "--database-url=" + nowhere}, 2, []string{"fastpubsub: NAME: must have at most 256 characters, not 257"}},
		{"database away", []string{"c", "--database-url=" + nowhere}, 1, []string{"fastpubsub: create_client: failed to connect"}},
	} {
		code, stdout, stderr := execute(t.Context(), append([]string{"create_client"}, test.args...)...)
		lines := slices.Collect(strings.Lines(stderr))
		if code != test.code || stdout != "" || len(lines) != len(test.stderr) || strings.Contains(stderr, "secret") {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", test.reason, code, stdout, stderr)
			continue
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, test.stderr[i]) {
				t.Errorf("%s: %q, want %q", test.reason, line, test.stderr[i])
			}
		}
	}
}

var createdClient = regexp.MustCompile(`^client_id=([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})\nclient_secret=([0-9a-f]{32})\n$`)

// What the first hour with authentication is: a key, a client, a server, a token, a topic.
func TestCreateClient(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	database := []string{"--database-url=" + db.URL, "--database-schema=" + db.Schema}
	create := func(args ...string) (id, secret string) {
		t.Helper()
		code, stdout, stderr := execute(t.Context(), append(args, database...)...)
		found := createdClient.FindStringSubmatch(stdout)
		if code != 0 || found == nil || stderr != "" {
			t.Fatalf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
		}
		return found[1], found[2]
	}
	key := fastpubsub.NewSecret()
	var log syncBuffer
	url, _ := startWith(t, db.Pool, apiSettings{schema: db.Schema, tokens: fastpubsub.TokenSettings{Key: key}, api: httpapi.Config{Authenticate: true}}, &log)
	post := func(path, token, body string) (int, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, text
	}
	var secrets []string
	for _, test := range []struct {
		args          []string
		scope         string // of the token
		token, topics int    // statuses
	}{
		{[]string{"create_client", "My Application"}, "*", 201, 201},
		{[]string{"create-client", "My Application", "topics:create  topics:read", "TRUE"}, "topics:create topics:read", 201, 201},
		{[]string{"create_client", "My Application", "topics:publish:orders", "true"}, "topics:publish:orders", 201, 403},
		{[]string{"create_client", "My Application", "*", "false"}, "", 401, 401},
	} {
		id, secret := create(test.args...)
		status, text := post("/oauth/token", "", `{"client_id":"`+id+`","client_secret":"`+secret+`"}`)
		var token struct {
			AccessToken string `json:"access_token"`
			Scope       string `json:"scope"`
		}
		if err := json.Unmarshal(text, &token); err != nil || status != test.token || token.Scope != test.scope {
			t.Errorf("%q: %d %s, want %d", test.args, status, text, test.token)
		}
		if status, text := post("/topics", token.AccessToken, `{"id":"topic-`+id+`"}`); status != test.topics {
			t.Errorf("%q: %d %s, want %d", test.args, status, text, test.topics)
		}
		secrets = append(secrets, secret)
	}
	for _, secret := range append(secrets, string(key)) {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has a secret: %s", log.String())
		}
	}
	if !strings.Contains(log.String(), "authentication=true") {
		t.Errorf("the log does not say that authentication is on: %s", log.String())
	}
}
