package httpapi_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// publicRoutes are all that nobody needs a token for.
var publicRoutes = []string{"POST /oauth/token", "GET /liveness", "GET /readiness", "GET /metrics",
	"GET /openapi.json", "GET /docs", "GET /docs/:file", "GET /redoc"}

// A route that was added without a thought of who may call it fails here.
func TestEveryRouteHasAScope(t *testing.T) {
	t.Parallel()
	for _, rt := range httpapi.Routes() {
		name := rt.Method + " " + rt.Pattern
		if slices.Contains(publicRoutes, name) != (rt.Scope == httpapi.Public) {
			t.Errorf("%s has the scope %q; is it meant to be public?", name, rt.Scope)
		}
		if rt.Scope == httpapi.Public {
			continue
		}
		if _, err := fastpubsub.ParseScopes(rt.Scope); err != nil || rt.Scope == "*" {
			t.Errorf("%s has the scope %q, which no client can have: %v", name, rt.Scope, err)
		}
		resource, action, _ := strings.Cut(rt.Scope, ":")
		if !strings.HasPrefix(rt.Pattern+"/", "/"+resource+"/") {
			t.Errorf("%s is not about %s", name, resource)
		}
		if object := strings.Contains(rt.Pattern, ":id"); action == "create" && object {
			t.Errorf("%s creates an object that has an id", name)
		}
	}
}

const (
	testKey   = "0123456789abcdef0123456789abcdef"
	otherKey  = "another key of more than 16 bytes"
	emptyHash = "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" // of no secret that is known
)

// A guarded server asks for tokens.
type guarded struct {
	client
	broker *fastpubsub.Broker
}

func serveGuarded(t *testing.T, logger *slog.Logger) guarded {
	t.Helper()
	db := storetest.New(t)
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Tokens: fastpubsub.TokenSettings{Key: testKey}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(httpapi.New(b, httpapi.Config{Logger: logger, Authenticate: true}))
	t.Cleanup(server.Close)
	return guarded{client{t, server.URL}, b}
}

// newClient stores a client whose secret nobody knows, which takes no time.
func (g guarded) newClient(scopes ...string) uuid.UUID {
	g.t.Helper()
	id := uuid.New()
	err := g.broker.ImportClient(g.t.Context(), fastpubsub.Client{ID: id, Name: "c", Scopes: scopes, Active: true}, emptyHash)
	if err != nil {
		g.t.Fatal(err)
	}
	return id
}

// A forged token is what the broker would issue, unless it is changed.
type forged struct {
	method jwt.SigningMethod
	key    any
	claims jwt.MapClaims
}

func forge(t *testing.T, id uuid.UUID, scope string, change func(*forged)) string {
	t.Helper()
	f := forged{jwt.SigningMethodHS256, []byte(testKey), jwt.MapClaims{
		"sub": id.String(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "scope": scope, "ver": 1}}
	if change != nil {
		change(&f)
	}
	token, err := jwt.NewWithClaims(f.method, f.claims).SignedString(f.key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// call returns the answer to a request with a token, unless that is empty.
func (g guarded) call(method, path, body, token string) *http.Response {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	answer.Body.Close()
	return answer
}

// allScopes are those of all routes.
func allScopes() []string {
	var all []string
	for _, rt := range httpapi.Routes() {
		if rt.Scope != httpapi.Public && !slices.Contains(all, rt.Scope) {
			all = append(all, rt.Scope)
		}
	}
	return all
}

// Every route with every kind of token, over a database.
func TestTokens(t *testing.T) {
	t.Parallel()
	g := serveGuarded(t, silent)
	const object, another = "0190a5d0-0000-7000-8000-000000000001", "0190a5d0-0000-7000-8000-000000000002" // ids of anything
	admin := g.newClient("*")
	updated, deactivated, deleted := g.newClient("*"), g.newClient("*"), g.newClient("*")
	revoked := map[string]string{}
	for name, id := range map[string]uuid.UUID{"updated": updated, "deactivated": deactivated, "deleted": deleted} {
		revoked[name] = forge(t, id, "*", nil)
		if answer := g.call("GET", "/topics", "", revoked[name]); answer.StatusCode != 200 {
			t.Fatalf("%s, before: %s", name, answer.Status)
		}
	}
	inactive := uuid.New() // since ever, so that its tokens are of the right version
	if err := g.broker.ImportClient(t.Context(), fastpubsub.Client{ID: inactive, Name: "c", Scopes: fastpubsub.Scopes{"*"}}, emptyHash); err != nil {
		t.Fatal(err)
	}
	byAdmin := header{"Authorization": "bearer " + forge(t, admin, "*", nil)} // schemes have no case
	g.do("PUT", "/clients/"+updated.String(), `{"name":"c","scopes":"*"}`, 200, byAdmin)
	g.do("PUT", "/clients/"+deactivated.String(), `{"name":"c","scopes":"*","is_active":false}`, 200, byAdmin)
	g.do("DELETE", "/clients/"+deleted.String(), "", 204, byAdmin)

	for _, rt := range httpapi.Routes() {
		path := strings.ReplaceAll(rt.Pattern, ":id", object)
		if rt.Scope == httpapi.Public {
			for _, token := range []string{"", "nonsense"} {
				if answer := g.call(rt.Method, path, "", token); answer.StatusCode == 401 || answer.StatusCode == 403 {
					t.Errorf("%s %s with the token %q: %s", rt.Method, path, token, answer.Status)
				}
			}
			continue
		}
		valid := forge(t, admin, rt.Scope, nil)
		others := slices.DeleteFunc(allScopes(), func(s string) bool { return s == rt.Scope })
		for i, scope := range others {
			others[i] = scope + " " + scope + ":" + object
		}
		hasObject := path != rt.Pattern
		objectStatus := 403
		if hasObject {
			objectStatus = 0
		}
		for _, test := range []struct {
			reason, token string
			status        int // 0 for any that lets the caller in
		}{
			{"no token", "", 401},
			{"not a token", "nonsense", 401},
			{"empty parts", "..", 401},
			{"four parts", valid + ".x", 401},
			{"cut short", valid[:len(valid)-1], 401},
			{"long", strings.Repeat("x", 9000), 401},
			{"expired", forge(t, admin, "*", func(f *forged) { f.claims["exp"] = time.Now().Add(-time.Second).Unix() }), 401},
			{"never expires", forge(t, admin, "*", func(f *forged) { delete(f.claims, "exp") }), 401},
			{"not yet good", forge(t, admin, "*", func(f *forged) { f.claims["nbf"] = time.Now().Add(time.Hour).Unix() }), 401},
			{"another key", forge(t, admin, "*", func(f *forged) { f.key = []byte(otherKey) }), 401},
			{"another algorithm", forge(t, admin, "*", func(f *forged) { f.method = jwt.SigningMethodHS512 }), 401},
			{"no algorithm", forge(t, admin, "*", func(f *forged) { f.method, f.key = jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType }), 401},
			{"of nobody", forge(t, uuid.New(), "*", nil), 401},
			{"of what is no client", forge(t, admin, "*", func(f *forged) { f.claims["sub"] = "admin" }), 401},
			{"without a version", forge(t, admin, "*", func(f *forged) { delete(f.claims, "ver") }), 401},
			{"of a later version", forge(t, admin, "*", func(f *forged) { f.claims["ver"] = 2 }), 401},
			{"version is text", forge(t, admin, "*", func(f *forged) { f.claims["ver"] = "1" }), 401},
			{"of a client that was updated", revoked["updated"], 401},
			{"of a client that was deactivated", revoked["deactivated"], 401},
			{"of a client that was deleted", revoked["deleted"], 401},
			{"of a client that is not active", forge(t, inactive, "*", nil), 401},
			{"without scopes", forge(t, admin, "", nil), 403},
			{"all other scopes", forge(t, admin, strings.Join(others, " "), nil), 403},
			{"the resource alone", forge(t, admin, strings.Split(rt.Scope, ":")[0], nil), 403},
			{"another object", forge(t, admin, rt.Scope+":"+another, nil), 403},
			{"the object", forge(t, admin, rt.Scope+":"+object, nil), objectStatus},
			{"the scope", valid, 0},
			{"everything", forge(t, admin, "*", nil), 0},
		} {
			body := "not JSON" // who gets in is told so
			answer := g.call(rt.Method, path, body, test.token)
			got := answer.StatusCode
			if test.status != 0 && got != test.status || test.status == 0 && (got == 401 || got == 403 || got >= 500) {
				t.Errorf("%s %s, %s: %s, want %d", rt.Method, rt.Pattern, test.reason, answer.Status, test.status)
			}
			challenge := answer.Header.Get("WWW-Authenticate")
			want := ""
			switch {
			case test.token == "":
				want = "Bearer"
			case got == 401:
				want = `Bearer error="invalid_token"`
			case got == 403:
				want = `Bearer error="insufficient_scope", scope="` + rt.Scope + `"`
			}
			if challenge != want {
				t.Errorf("%s %s, %s: WWW-Authenticate %q, want %q", rt.Method, rt.Pattern, test.reason, challenge, want)
			}
			if rt.Method == "POST" && got == 200 {
				t.Errorf("%s %s, %s: took what is not JSON", rt.Method, rt.Pattern, test.reason)
			}
		}
	}
	g.do("GET", "/nowhere", "", 404, nil)
	g.do("PATCH", "/topics", "", 405, nil)
	g.do("OPTIONS", "/topics", "", 204, nil)
}

// Who may call comes before what the request says, and that before whether there is such a thing.
func TestOrderOfChecks(t *testing.T) {
	t.Parallel()
	b := working()
	b.checkToken = func(token fastpubsub.Secret) (fastpubsub.Caller, error) {
		if token == "bad" {
			return fastpubsub.Caller{}, fastpubsub.ErrToken
		}
		return fastpubsub.Caller{Scopes: strings.Split(string(token), "+")}, nil
	}
	api := httpapi.New(b, httpapi.Config{Logger: silent, Authenticate: true})
	const noClient = "/clients/550e8400-e29b-41d4-a716-446655440000"
	for _, test := range []struct {
		method, target, body, token string
		status                      int
	}{
		{"POST", "/topics/x/messages", `5`, "bad", 401},
		{"POST", "/topics/x/messages", `5`, "topics:read", 403},
		{"POST", "/topics/x/messages", `5`, "topics:publish", 422},
		{"POST", "/topics/x/messages", `[{}]`, "topics:publish", 404},
		{"POST", "/topics/x/messages", `[{}]`, "topics:publish:x", 404},
		{"POST", "/topics/t/messages", `[{}]`, "topics:publish:t", 204},
		{"POST", "/topics/%74/messages", `[{}]`, "topics:publish:t", 204},
		{"POST", "/topics/T/messages", `[{}]`, "topics:publish:t", 403},
		{"DELETE", "/topics/%ff", ``, "topics:read", 403},
		{"DELETE", "/topics/%ff", ``, "topics:delete", 404},
		{"GET", "/topics", ``, "topics:read:t", 403},
		{"HEAD", "/topics/t", ``, "topics:read:t", 200},
		{"HEAD", "/topics/t", ``, "topics:publish:t", 403},
		{"PUT", noClient, `{}`, "bad", 401},
		{"PUT", noClient, `{}`, "clients:read", 403},
		{"PUT", noClient, `{}`, "clients:update", 422},
		{"PUT", noClient, `{"name":"c","scopes":"*"}`, "clients:update", 403},
		{"PUT", noClient, `{"name":"c","scopes":"clients:update"}`, "clients:update", 404},
		{"PUT", "/clients/x", `{}`, "clients:read", 403},
		{"PUT", "/clients/x", `{}`, "clients:update", 422},
		{"GET", "/clients/" + strings.ToUpper(anUUID), ``, "clients:read:" + anUUID, 200},
		{"GET", "/clients/{" + anUUID + "}", ``, "clients:read:" + anUUID, 200},
		{"GET", noClient, ``, "clients:read:" + anUUID, 403},
	} {
		w := do(api, test.method, test.target, test.body, header{"Authorization": "Bearer " + test.token})
		if w.Code != test.status {
			t.Errorf("%s %s %s as %s: %d %s, want %d", test.method, test.target, test.body, test.token, w.Code, w.Body, test.status)
		}
	}
}

func TestTokenHeader(t *testing.T) {
	t.Parallel()
	b := working()
	b.checkToken = func(token fastpubsub.Secret) (fastpubsub.Caller, error) {
		if token != "h.c.s" {
			return fastpubsub.Caller{}, fastpubsub.ErrToken
		}
		return fastpubsub.Caller{Scopes: fastpubsub.Scopes{"*"}}, nil
	}
	api := httpapi.New(b, httpapi.Config{Logger: silent, Authenticate: true})
	for _, test := range []struct {
		headers []string
		status  int
	}{
		{[]string{"Bearer h.c.s"}, 200},
		{[]string{"BEARER   h.c.s "}, 200},
		{nil, 401},
		{[]string{""}, 401},
		{[]string{"Bearer"}, 401},
		{[]string{"Bearer "}, 401},
		{[]string{"h.c.s"}, 401},
		{[]string{"Bearerh.c.s"}, 401},
		{[]string{"Basic h.c.s"}, 401},
		{[]string{"Bearer h.c.s", "Bearer h.c.s"}, 401},
	} {
		r := httptest.NewRequest("GET", "/topics?access_token=h.c.s", nil)
		r.Header["Authorization"] = test.headers
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if w.Code != test.status {
			t.Errorf("%q: %d, want %d", test.headers, w.Code, test.status)
		}
		if w.Code == 401 && !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("%q: WWW-Authenticate %q", test.headers, w.Header().Get("WWW-Authenticate"))
		}
	}
}

// What keeps a token from being checked lets nobody in.
func TestTokensCannotBeChecked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err    error
		status int
	}{
		{fmt.Errorf("check token: %w", &net.OpError{Op: "dial", Err: errors.New("connection refused")}), 503},
		{fastpubsub.ErrSchemaOutdated, 503},
		{fastpubsub.ErrNoTokens, 500},
		{errors.New("anything"), 500},
	} {
		b := &broker{checkToken: func(fastpubsub.Secret) (fastpubsub.Caller, error) {
			return fastpubsub.Caller{Scopes: fastpubsub.Scopes{"*"}}, test.err
		}}
		w := do(httpapi.New(b, httpapi.Config{Logger: silent, Authenticate: true}), "GET", "/topics", "", header{"Authorization": "Bearer h.c.s"})
		if w.Code != test.status {
			t.Errorf("%v: %d %s, want %d", test.err, w.Code, w.Body, test.status)
		}
	}
}

// A wait for messages that began with a good token goes on.
func TestRevokedDuringLongPoll(t *testing.T) {
	t.Parallel()
	b, started := waiting()
	revoked := make(chan struct{})
	b.checkToken = func(fastpubsub.Secret) (fastpubsub.Caller, error) {
		select {
		case <-revoked:
			return fastpubsub.Caller{}, fastpubsub.ErrToken
		default:
			return fastpubsub.Caller{Scopes: fastpubsub.Scopes{"subscriptions:consume:s"}}, nil
		}
	}
	api := httpapi.New(b, httpapi.Config{Logger: silent, Authenticate: true})
	const target = "/subscriptions/s/messages?consumer_id=w&wait_seconds=30"
	token := header{"Authorization": "Bearer h.c.s"}
	answers := make(chan *httptest.ResponseRecorder)
	go func() { answers <- do(api, "GET", target, "", token) }()
	select {
	case <-started:
	case w := <-answers:
		t.Fatalf("it did not wait: %d %s", w.Code, w.Body)
	}
	close(revoked)
	if w := do(api, "GET", target, "", token); w.Code != 401 {
		t.Errorf("the next one: %d %s, want 401", w.Code, w.Body)
	}
	api.EndWaits()
	if w := <-answers; w.Code != 200 || w.Body.String() != `{"data":[]}` {
		t.Errorf("the one that waited: %d %s, want 200 without messages", w.Code, w.Body)
	}
}

func TestGranting(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		caller, wanted string
		missing        string
	}{
		{"*", "*", ""},
		{"*", "topics:read clients:delete:" + anUUID, ""},
		{"clients:create clients:update", "*", "*"},
		{"clients:create clients:update topics:read", "topics:read", ""},
		{"clients:create clients:update topics:read", "topics:read:orders", ""},
		{"clients:create clients:update topics:read:orders", "topics:read:orders", ""},
		{"clients:create clients:update topics:read:orders", "topics:read", "topics:read"},
		{"clients:create clients:update topics:read:orders", "topics:read:order", "topics:read:order"},
		{"clients:create clients:update topics:read", "topics:publish topics:read subscriptions:read:s", "topics:publish subscriptions:read:s"},
		{"clients:create clients:update", "clients:create clients:update clients:delete", "clients:delete"},
	} {
		b := working()
		b.checkToken = func(fastpubsub.Secret) (fastpubsub.Caller, error) {
			return fastpubsub.Caller{Scopes: strings.Fields(test.caller)}, nil
		}
		api := httpapi.New(b, httpapi.Config{Logger: silent, Authenticate: true})
		for target, granted := range map[string]int{"POST /clients": 201, "PUT /clients/" + anUUID: 200} {
			method, target, _ := strings.Cut(target, " ")
			w := do(api, method, target, `{"name":"c","scopes":"`+test.wanted+`"}`, header{"Authorization": "Bearer h.c.s"})
			want := granted
			if test.missing != "" {
				want = 403
				if body := `{"detail":"Insufficient scope to grant ` + test.missing + `"}`; w.Body.String() != body {
					t.Errorf("%s as %q: %s, want %s", method, test.caller, w.Body, body)
				}
			}
			if w.Code != want {
				t.Errorf("%s %q as %q: %d %s, want %d", method, test.wanted, test.caller, w.Code, w.Body, want)
			}
		}
	}
}

// Both forms of the token endpoint, and how often the broker is asked: it takes as long for all that it refuses.
func TestIssueToken(t *testing.T) {
	t.Parallel()
	const (
		ok          = `{"access_token":"h.c.s","token_type":"Bearer","expires_in":1800,"scope":"topics:read clients:read"}`
		badJSON     = `{"detail":"Invalid client credentials"}`
		badForm     = `{"detail":"Invalid client credentials","error":"invalid_client"}`
		good        = "grant_type=client_credentials&client_id=" + anUUID + "&client_secret=a1b2"
		grant       = "grant_type=client_credentials"
		isForm      = "application/x-www-form-urlencoded"
		isJSON      = "application/json"
		basic       = `Basic realm="fastpubsub", charset="UTF-8"`
		nobody      = "550e8400-e29b-41d4-a716-446655440000"
		twoPlaces   = `{"detail":"The client's id and secret must come either in the body or in the Authorization header","error":"invalid_request"}`
		unsupported = `{"detail":"grant_type must be client_credentials","error":"unsupported_grant_type"}`
	)
	encoded := func(id, secret string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
	}
	for _, test := range []struct {
		reason, contentType, authorization, body string
		status                                   int
		want, challenge                          string
		asked                                    int
	}{
		{"JSON", isJSON, "", `{"client_id":"` + anUUID + `","client_secret":"a1b2"}`, 201, ok, "", 1},
		{"no type", "", "", `{"client_id":"` + anUUID + `","client_secret":"a1b2"}`, 201, ok, "", 1},
		{"id without hyphens", isJSON, "", `{"client_id":"` + strings.ReplaceAll(anUUID, "-", "") + `","client_secret":"a1b2"}`, 201, ok, "", 1},
		{"wrong secret", isJSON, "", `{"client_id":"` + anUUID + `","client_secret":"a1b3"}`, 401, badJSON, "Bearer", 1},
		{"empty secret", isJSON, "", `{"client_id":"` + anUUID + `","client_secret":""}`, 401, badJSON, "Bearer", 1},
		{"nobody", isJSON, "", `{"client_id":"` + nobody + `","client_secret":"a1b2"}`, 401, badJSON, "Bearer", 1},
		{"a form that says it is JSON", isJSON, "", good, 422, problem("json_invalid", `"body",1`, "must be JSON: invalid character 'g' looking for beginning of value"), "", 0},
		{"nothing", isJSON, "", ``, 422, problem("missing", `"body"`, "must not be empty"), "", 0},
		{"an empty object", isJSON, "", `{}`, 422, `{"detail":[{"type":"missing","loc":["body","client_id"],"msg":"must not be missing"},` +
			`{"type":"missing","loc":["body","client_secret"],"msg":"must not be missing"}]}`, "", 0},
		{"wrong types", isJSON, "", `{"client_id":1,"client_secret":2}`, 422, `{"detail":[{"type":"uuid_type","loc":["body","client_id"],"msg":"must be a string with a UUID"},` +
			`{"type":"string_type","loc":["body","client_secret"],"msg":"must be a string"}]}`, "", 0},
		{"not a UUID", isJSON, "", `{"client_id":"me","client_secret":"a1b2"}`, 422, problem("uuid_parsing", `"body","client_id"`, "must be a UUID"), "", 0},
		{"XML", "text/xml", "", `<a/>`, 415, `{"detail":"The Content-Type must be application/json or application/x-www-form-urlencoded"}`, "", 0},
		{"large", isJSON, "", `{"client_id":"` + strings.Repeat("x", 16<<10) + `"}`, 413, `{"detail":"The body must have at most 16384 bytes"}`, "", 0},

		{"form", isForm, "", good, 200, ok, "", 1},
		{"form with a charset", isForm + "; charset=UTF-8", "", good, 200, ok, "", 1},
		{"form, fewer scopes", isForm, "", good + "&scope=topics%3Aread:orders+clients:read", 200, strings.Replace(ok, "topics:read clients", "topics:read:orders clients", 1), "", 1},
		{"form, empty scope", isForm, "", good + "&scope=", 200, ok, "", 1},
		{"form, more scopes", isForm, "", good + "&scope=topics:publish", 400, `{"detail":"The client does not have all of these scopes","error":"invalid_scope"}`, "", 1},
		{"form, what is no scope", isForm, "", good + "&scope=openid", 400, `{"detail":"scopes: \"openid\": must be *, or begin with topics:, subscriptions: or clients:","error":"invalid_scope"}`, "", 0},
		{"form, unknown parameter", isForm, "", good + "&audience=x&audience=y", 200, ok, "", 1},
		{"form, wrong secret", isForm, "", grant + "&client_id=" + anUUID + "&client_secret=x", 401, badForm, "Bearer", 1},
		{"form, no credentials", isForm, "", grant, 401, badForm, "Bearer", 1},
		{"form, id alone", isForm, "", grant + "&client_id=" + anUUID, 401, badForm, "Bearer", 1},
		{"form, not a UUID", isForm, "", grant + "&client_id=me&client_secret=a1b2", 401, badForm, "Bearer", 1},
		{"form, no grant", isForm, "", "client_id=" + anUUID + "&client_secret=a1b2", 400, `{"detail":"grant_type must not be missing","error":"invalid_request"}`, "", 0},
		{"form, another grant", isForm, "", "grant_type=password&username=x&password=y", 400, unsupported, "", 0},
		{"form, the grant twice", isForm, "", good + "&grant_type=client_credentials", 400, `{"detail":"grant_type must not come more than once","error":"invalid_request"}`, "", 0},
		{"form, two secrets", isForm, "", good + "&client_secret=x", 400, `{"detail":"client_secret must not come more than once","error":"invalid_request"}`, "", 0},
		{"form, bad encoding", isForm, "", good + "&x=%zz", 400, `{"detail":"The body must be URL-encoded","error":"invalid_request"}`, "", 0},
		{"empty form", isForm, "", "", 400, `{"detail":"grant_type must not be missing","error":"invalid_request"}`, "", 0},
		{"JSON that says it is a form", isForm, "", `{"client_id":"` + anUUID + `"}`, 400, `{"detail":"grant_type must not be missing","error":"invalid_request"}`, "", 0},
		{"large form", isForm, "", good + "&x=" + strings.Repeat("x", 16<<10), 413, `{"detail":"The body must have at most 16384 bytes"}`, "", 0},

		{"Basic", isForm, encoded(anUUID, "a1b2"), grant, 200, ok, "", 1},
		{"Basic, form-encoded", isForm, encoded(strings.ReplaceAll(anUUID, "-", "%2D"), "a%31b2"), grant, 200, ok, "", 1},
		{"Basic, the id in the body too", isForm, encoded(anUUID, "a1b2"), grant + "&client_id=" + anUUID, 200, ok, "", 1},
		{"Basic, another id in the body", isForm, encoded(anUUID, "a1b2"), grant + "&client_id=" + nobody, 400, twoPlaces, "", 0},
		{"Basic, the secret in the body too", isForm, encoded(anUUID, "a1b2"), grant + "&client_secret=a1b2", 400, twoPlaces, "", 0},
		{"Basic, wrong secret", isForm, encoded(anUUID, "x"), grant, 401, badForm, basic, 1},
		{"Basic, nobody", isForm, encoded(nobody, "a1b2"), grant, 401, badForm, basic, 1},
		{"Basic, no colon", isForm, "Basic " + base64.StdEncoding.EncodeToString([]byte(anUUID)), grant, 401, badForm, basic, 1},
		{"Basic, bad base64", isForm, "Basic !", grant, 401, badForm, basic, 1},
		{"Basic, bad encoding", isForm, encoded(anUUID, "%zz"), grant, 401, badForm, basic, 1},
		{"another scheme", isForm, "Digest x", grant, 401, badForm, basic, 1},
		{"Basic, no grant", isForm, encoded(anUUID, "a1b2"), "", 400, `{"detail":"grant_type must not be missing","error":"invalid_request"}`, "", 0},
	} {
		t.Run(test.reason, func(t *testing.T) {
			t.Parallel()
			b := working()
			asked, issue := 0, b.issueToken
			b.issueToken = func(id string, secret fastpubsub.Secret, scopes fastpubsub.Scopes) (fastpubsub.Token, error) {
				asked++
				return issue(id, secret, scopes)
			}
			headers := header{"Content-Type": test.contentType}
			if test.authorization != "" {
				headers["Authorization"] = test.authorization
			}
			for _, authenticate := range []bool{true, false} {
				asked = 0
				w := do(httpapi.New(b, httpapi.Config{Logger: silent, Authenticate: authenticate}), "POST", "/oauth/token", test.body, headers)
				if w.Code != test.status {
					t.Errorf("status %d, want %d", w.Code, test.status)
				}
				if diff := cmp.Diff(test.want, w.Body.String()); diff != "" {
					t.Errorf("body (-want +got):\n%s", diff)
				}
				if got := w.Header().Get("WWW-Authenticate"); got != test.challenge {
					t.Errorf("WWW-Authenticate %q, want %q", got, test.challenge)
				}
				if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Pragma") != "no-cache" {
					t.Errorf("caches may keep it: %v", w.Header())
				}
				if asked != test.asked {
					t.Errorf("the broker was asked %d times, want %d", asked, test.asked)
				}
			}
		})
	}
}

// Tokens that cannot be issued: of a broker without a key, and while too many are asked for.
func TestIssueNoToken(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err    error
		status int
		json   string
		form   string
	}{
		{fastpubsub.ErrNoTokens, 404, `{"detail":"Authentication is off: there are no access tokens, and none is needed"}`,
			`{"detail":"Authentication is off: there are no access tokens, and none is needed","error":"invalid_request"}`},
		{fastpubsub.ErrBusy, 503, `{"detail":"The token endpoint is busy, try again"}`, `{"detail":"The token endpoint is busy, try again"}`},
	} {
		b := &broker{issueToken: func(string, fastpubsub.Secret, fastpubsub.Scopes) (fastpubsub.Token, error) {
			return fastpubsub.Token{}, test.err
		}}
		api := httpapi.New(b, httpapi.Config{Logger: silent})
		w := do(api, "POST", "/oauth/token", `{"client_id":"`+anUUID+`","client_secret":"x"}`, nil)
		if w.Code != test.status || w.Body.String() != test.json {
			t.Errorf("%v: %d %s, want %d %s", test.err, w.Code, w.Body, test.status, test.json)
		}
		w = do(api, "POST", "/oauth/token", "grant_type=client_credentials", header{"Content-Type": "application/x-www-form-urlencoded"})
		if w.Code != test.status || w.Body.String() != test.form {
			t.Errorf("%v: %d %s, want %d %s", test.err, w.Code, w.Body, test.status, test.form)
		}
	}
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// What the README shows, from the first client to its end; and nothing of it is in the log but ids.
func TestClientsOverHTTP(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	g := serveGuarded(t, slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	bearer := func(token string) header { return header{"Authorization": "Bearer " + token} }
	adminID := g.newClient("*")
	admin := bearer(forge(t, adminID, "*", nil))

	var created struct{ ID, Secret string }
	decode(t, g.do("POST", "/clients", `{"name":"shop","scopes":"topics:create topics:publish:orders"}`, 201, admin), &created)
	if len(created.Secret) != 32 || strings.Trim(created.Secret, "0123456789abcdef") != "" {
		t.Errorf("the secret is %q", created.Secret)
	}
	var token struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		Scope       string
	}
	credentials := `{"client_id":"` + created.ID + `","client_secret":"` + created.Secret + `"}`
	decode(t, g.do("POST", "/oauth/token", credentials, 201, nil), &token)
	if token.ExpiresIn != 1800 || token.Scope != "topics:create topics:publish:orders" {
		t.Errorf("token %+v", token)
	}
	mine := bearer(token.AccessToken)
	g.do("POST", "/topics", `{"id":"orders"}`, 201, mine)
	g.do("POST", "/topics/orders/messages", `[{}]`, 204, mine)
	g.do("POST", "/topics/others/messages", `[{}]`, 403, mine)
	g.do("GET", "/topics", ``, 403, mine)
	g.do("GET", "/topics", ``, 401, nil)

	client := g.do("GET", "/clients/"+created.ID, "", 200, admin)
	if strings.Contains(client, "argon2") || strings.Contains(client, created.Secret) {
		t.Errorf("the client shows its secret: %s", client)
	}
	if list := g.do("GET", "/clients", "", 200, admin); !strings.Contains(list, client) {
		t.Errorf("list %s lacks %s", list, client)
	}
	updated := g.do("PUT", "/clients/"+created.ID, `{"name":"shop","scopes":"topics:read","is_active":false}`, 200, admin)
	if !strings.Contains(updated, `"token_version":2`) || !strings.Contains(updated, `"is_active":false`) {
		t.Errorf("updated: %s", updated)
	}
	g.do("POST", "/topics/orders/messages", `[{}]`, 401, mine)
	refused := g.do("POST", "/oauth/token", credentials, 401, nil)
	g.do("PUT", "/clients/"+created.ID, `{"name":"shop","scopes":"topics:read"}`, 200, admin)
	refusedStill := g.do("POST", "/oauth/token", credentials, 401, nil)
	g.do("PUT", "/clients/"+created.ID, `{"name":"shop","scopes":"topics:read","is_active":true}`, 200, admin)
	form := header{"Content-Type": "application/x-www-form-urlencoded"}
	decode(t, g.do("POST", "/oauth/token", "grant_type=client_credentials&client_id="+created.ID+"&client_secret="+created.Secret, 200, form), &token)
	g.do("GET", "/topics", ``, 200, bearer(token.AccessToken))
	g.do("DELETE", "/clients/"+created.ID, "", 204, admin)
	g.do("DELETE", "/clients/"+created.ID, "", 404, admin)
	g.do("GET", "/topics", ``, 401, bearer(token.AccessToken))
	deleted := g.do("POST", "/oauth/token", credentials, 401, nil)
	if refused != deleted || refused != refusedStill {
		t.Errorf("an inactive client is told apart from one that does not exist: %s, %s, %s", refused, refusedStill, deleted)
	}

	log := logged.String()
	if strings.Contains(log, created.Secret) || strings.Contains(log, token.AccessToken) || strings.Contains(log, "argon2id") || strings.Contains(log, testKey) {
		t.Errorf("the log has a secret: %s", log)
	}
	if !strings.Contains(log, `"client_id":"`+created.ID) || !strings.Contains(log, "is deleted or not active") {
		t.Errorf("the log does not say who called, or why a token was refused: %s", log)
	}
}

func FuzzReadTokenForm(f *testing.F) {
	f.Add("grant_type=client_credentials&client_id=a&client_secret=b&scope=*", "Basic YTpi")
	f.Add("grant_type=client_credentials", "Basic JTp6")
	f.Add("grant_type=password", "")
	f.Add("%zz", "basic ")
	codes := []string{"", "invalid_request", "unsupported_grant_type", "invalid_scope"}
	f.Fuzz(func(t *testing.T, body, authorization string) {
		r := httptest.NewRequest("POST", "/oauth/token", nil)
		r.Header.Set("Authorization", authorization)
		if _, _, code := httpapi.ReadTokenForm(r, body); !slices.Contains(codes, code) {
			t.Errorf("refused as %q", code)
		}
		// Whatever an id and a secret are, they arrive.
		id, secret := body, authorization
		if id == "" || secret == "" || !utf8.ValidString(id+secret) {
			return
		}
		r.Header.Set("Authorization", "")
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}}
		if gotID, gotSecret, code := httpapi.ReadTokenForm(r, form.Encode()); gotID != id || gotSecret != secret || code != "" {
			t.Errorf("form: %q, %q, %q", gotID, gotSecret, code)
		}
		r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
		if gotID, gotSecret, code := httpapi.ReadTokenForm(r, "grant_type=client_credentials"); gotID != id || gotSecret != secret || code != "" {
			t.Errorf("Basic: %q, %q, %q", gotID, gotSecret, code)
		}
	})
}
