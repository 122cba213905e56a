package httpapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pb33f/jsonschema/v6"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/errors"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func newValidator(t *testing.T) validator.Validator {
	t.Helper()
	document, err := libopenapi.NewDocument(httpapi.OpenAPIDocument)
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(document, config.WithFormatAssertions(), config.WithURLEncodedBodyValidation(),
		config.WithRejectUndeclaredRequestBody(), config.WithStrictMode(),
		// What has other keys each time, and what all pages have.
		config.WithStrictIgnorePaths("$.body.**.payload.*", "$.body.**.attributes.*", "$.body.**.filter.*", "$.body.filter.*", "$.body[*].*",
			"$.body.openapi", "$.body.info", "$.body.servers", "$.body.tags", "$.body.security", "$.body.paths", "$.body.components"),
		config.WithStrictIgnoredHeadersExtra("Content-Security-Policy", "Referrer-Policy", "X-Content-Type-Options"),
		config.WithoutSecurityValidation(), config.WithLogger(slog.New(slog.DiscardHandler)))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	t.Cleanup(v.Release)
	return v
}

func explain(errs []*errors.ValidationError) string {
	var text strings.Builder
	for _, err := range errs {
		fmt.Fprintf(&text, "\n  %s: %s", err.Message, err.Reason)
		for _, failure := range err.SchemaValidationErrors {
			fmt.Fprintf(&text, "\n    %s: %s", failure.FieldPath, failure.Reason)
		}
	}
	return text.String()
}

// An operation is one of the document.
type operation struct {
	Security  *[]map[string][]string
	Responses map[string]any
}

// operations are those of the document: "GET /topics/{id}".
func operations(t *testing.T) map[string]operation {
	t.Helper()
	var document struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(httpapi.OpenAPIDocument, &document); err != nil {
		t.Fatal(err)
	}
	all := map[string]operation{}
	for path, item := range document.Paths {
		for method, text := range item {
			if method == "parameters" {
				continue
			}
			var op operation
			if err := json.Unmarshal(text, &op); err != nil {
				t.Fatal(err)
			}
			all[strings.ToUpper(method)+" "+path] = op
		}
	}
	return all
}

// The document has the routes of the table, no others, and their scopes.
func TestOpenAPIRoutes(t *testing.T) {
	t.Parallel()
	want, got := map[string]string{}, map[string]string{}
	for _, rt := range httpapi.Routes() {
		want[rt.Method+" "+httpapi.PathLabel(rt.Pattern)] = rt.Scope
	}
	for name, op := range operations(t) {
		switch {
		case op.Security == nil:
			got[name] = "not said"
		case len(*op.Security) == 0:
			got[name] = httpapi.Public
		default:
			got[name] = strings.Join((*op.Security)[0]["oauth2"], " ")
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes and scopes (-table +document):\n%s", diff)
	}
}

// The document is OpenAPI 3.1, and its examples are what its schemas say.
func TestOpenAPIDocument(t *testing.T) {
	t.Parallel()
	v := newValidator(t)
	if ok, errs := v.ValidateDocument(); !ok {
		t.Error(explain(errs))
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(httpapi.OpenAPIDocument))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	if err := compiler.AddResource("openapi.json", document); err != nil {
		t.Fatal(err)
	}
	checked := 0
	var walk func(place string, v any)
	walk = func(place string, v any) {
		object, ok := v.(map[string]any)
		if !ok {
			list, _ := v.([]any)
			for i, element := range list {
				walk(fmt.Sprintf("%s/%d", place, i), element)
			}
			return
		}
		if _, ok := object["schema"]; ok {
			schema, err := compiler.Compile("openapi.json#" + place + "/schema")
			if err != nil {
				t.Errorf("%s: %v", place, err)
				return
			}
			examples := map[string]any{}
			if example, ok := object["example"]; ok {
				examples["example"] = example
			}
			named, _ := object["examples"].(map[string]any)
			for name, example := range named {
				examples["examples/"+name] = example.(map[string]any)["value"]
			}
			for name, example := range examples {
				checked++
				if err := schema.Validate(example); err != nil {
					t.Errorf("%s/%s: %v", place, name, err)
				}
			}
		}
		for key, member := range object {
			walk(place+"/"+url.PathEscape(strings.NewReplacer("~", "~0", "/", "~1").Replace(key)), member)
		}
	}
	walk("", document)
	if checked < 50 {
		t.Errorf("%d examples were found, which are not all", checked)
	}
}

// What is documented and never seen in the test below, with the reason.
var notProvoked = map[int]string{
	400: "a body that breaks off, which no client of net/http sends; TestBodyEnds has it. (POST /oauth/token has others, and those are seen.)",
}

// A truth is a transport that holds what it carries against the document.
type truth struct {
	t         *testing.T
	validator validator.Validator
	routes    map[string]*regexp.Regexp // by "GET /topics/{id}"
	seen      map[string]map[int]bool
}

func newTruth(t *testing.T) *truth {
	tr := &truth{t, newValidator(t), map[string]*regexp.Regexp{}, map[string]map[int]bool{}}
	for name := range operations(t) {
		method, path, _ := strings.Cut(name, " ")
		pattern := regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(regexp.QuoteMeta(path), `[^/]+`)
		tr.routes[name] = regexp.MustCompile("^" + method + " " + pattern + "$")
		tr.seen[name] = map[int]bool{}
	}
	return tr
}

func (tr *truth) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if err != nil {
		return nil, err
	}
	restore := func() {
		answer.Body = io.NopCloser(bytes.NewReader(text))
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	defer restore()
	for name, pattern := range tr.routes {
		if pattern.MatchString(r.Method + " " + r.URL.Path) {
			tr.seen[name][answer.StatusCode] = true
		}
	}
	restore()
	if ok, errs := tr.validator.ValidateHttpResponse(r, answer); !ok {
		tr.t.Errorf("%s %s: the answer %d %.200s is not as documented:%s", r.Method, r.URL, answer.StatusCode, text, explain(errs))
	}
	switch answer.StatusCode {
	case 400, 413, 415, 422: // is refused for what it is
		return answer, nil
	}
	restore()
	if ok, errs := tr.validator.ValidateHttpRequest(r); !ok {
		tr.t.Errorf("%s %s was answered with %d, but the request %.200s is not as documented:%s", r.Method, r.URL, answer.StatusCode, body, explain(errs))
	}
	return answer, nil
}

// do sends a request and returns the answer, which must have the status.
func (tr *truth) do(server, method, path, body string, status int, headers header) string {
	tr.t.Helper()
	r, err := http.NewRequestWithContext(tr.t.Context(), method, server+path, strings.NewReader(body))
	if err != nil {
		tr.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	answer, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		tr.t.Fatal(err)
	}
	if answer.StatusCode != status {
		tr.t.Errorf("%s %s: %d %s, want %d", method, path, answer.StatusCode, text, status)
	}
	return string(text)
}

// idIn returns a member of a JSON object.
func idIn(t *testing.T, text, name string) string {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	value, _ := object[name].(string)
	if value == "" {
		t.Fatalf("%s has no %s", text, name)
	}
	return value
}

const someID = "550e8400-e29b-41d4-a716-446655440000"

// validRequests are a request for each route that has something to do with the database: the path and the body.
var validRequests = map[string][2]string{
	"POST /oauth/token":                      {"/oauth/token", `{"client_id":"` + someID + `","client_secret":"x"}`},
	"GET /clients":                           {"/clients", ""},
	"POST /clients":                          {"/clients", `{"name":"n","scopes":"topics:read"}`},
	"GET /clients/{id}":                      {"/clients/" + someID, ""},
	"PUT /clients/{id}":                      {"/clients/" + someID, `{"name":"n","scopes":"topics:read","is_active":null}`},
	"DELETE /clients/{id}":                   {"/clients/" + someID, ""},
	"GET /topics":                            {"/topics?offset=0&limit=100", ""},
	"POST /topics":                           {"/topics", `{"id":"t"}`},
	"GET /topics/{id}":                       {"/topics/none", ""},
	"DELETE /topics/{id}":                    {"/topics/none", ""},
	"POST /topics/{id}/messages":             {"/topics/none/messages", `[{}]`},
	"GET /subscriptions":                     {"/subscriptions", ""},
	"POST /subscriptions":                    {"/subscriptions", `{"id":"none","topic_id":"none","filter":null,"max_delivery_attempts":null}`},
	"GET /subscriptions/{id}":                {"/subscriptions/none", ""},
	"DELETE /subscriptions/{id}":             {"/subscriptions/none", ""},
	"GET /subscriptions/{id}/messages":       {"/subscriptions/none/messages?consumer_id=w&batch_size=100&wait_seconds=0&ack_deadline_seconds=1", ""},
	"POST /subscriptions/{id}/acks":          {"/subscriptions/none/acks", `[]`},
	"POST /subscriptions/{id}/nacks":         {"/subscriptions/none/nacks", `["` + someID + `"]`},
	"POST /subscriptions/{id}/leases":        {"/subscriptions/none/leases", `{"ids":[],"ack_deadline_seconds":0}`},
	"GET /subscriptions/{id}/dlq":            {"/subscriptions/none/dlq", ""},
	"POST /subscriptions/{id}/dlq/reprocess": {"/subscriptions/none/dlq/reprocess", `[]`},
	"GET /subscriptions/{id}/metrics":        {"/subscriptions/none/metrics", ""},
}

// refusedRequests are requests without a body that are refused with 422.
var refusedRequests = []string{
	"GET /clients?limit=0", "GET /clients/x", "DELETE /clients/x", "GET /topics?limit=101", "GET /subscriptions?offset=-1",
	"GET /subscriptions/s/messages", "GET /subscriptions/s/dlq?limit=x",
}

// Every route is called on a real database in every way that the document says it can be answered, and each request and each
// answer is as the document says.
func TestOpenAPIIsTrue(t *testing.T) {
	t.Parallel()
	tr := newTruth(t)
	db := storetest.New(t)
	serve := func(schema string, pool *pgxpool.Pool, settings httpapi.Config) (*fastpubsub.Broker, string) {
		broker, err := fastpubsub.New(pool, fastpubsub.Config{Schema: schema, Tokens: fastpubsub.TokenSettings{Key: testKey}})
		if err != nil {
			t.Fatal(err)
		}
		settings.Logger = silent
		server := httptest.NewServer(httpapi.New(broker, settings))
		t.Cleanup(server.Close)
		return broker, server.URL
	}
	closed, err := pgxpool.NewWithConfig(t.Context(), db.Pool.Config())
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	broker, guarded := serve(db.Schema, db.Pool, httpapi.Config{Authenticate: true})
	_, open := serve(db.Schema, db.Pool, httpapi.Config{MaxBodyBytes: 1000})
	_, outdated := serve("nowhere", db.Pool, httpapi.Config{})
	_, broken := serve(db.Schema, closed, httpapi.Config{})

	token := func(scopes string) header {
		parsed, err := fastpubsub.ParseScopes(scopes)
		if err != nil {
			t.Fatal(err)
		}
		c, secret, err := broker.CreateClient(t.Context(), fastpubsub.NewClient{Name: scopes, Scopes: parsed})
		if err != nil {
			t.Fatal(err)
		}
		credentials := fmt.Sprintf(`{"client_id":"%v","client_secret":"%s"}`, c.ID, string(secret))
		text := tr.do(guarded, "POST", "/oauth/token", credentials, 201, nil)
		form := fmt.Sprintf("grant_type=client_credentials&client_id=%v&client_secret=%s", c.ID, string(secret))
		tr.do(guarded, "POST", "/oauth/token", form, 200, header{"Content-Type": "application/x-www-form-urlencoded"})
		return header{"Authorization": "Bearer " + idIn(t, text, "access_token")}
	}
	admin, reader := token("*"), token("topics:read")

	// Answers to anybody, and to those who lack a scope, whatever they ask for.
	for _, name := range slices.Sorted(maps.Keys(validRequests)) {
		method, _, _ := strings.Cut(name, " ")
		path, body := validRequests[name][0], validRequests[name][1]
		tr.do(outdated, method, path, body, 503, nil)
		tr.do(broken, method, path, body, 500, nil)
		if strings.Contains(name, "{id}") {
			tr.do(open, method, path, body, 404, nil)
		}
		if body != "" {
			tr.do(open, method, path, "{", 422, nil)
			tr.do(open, method, path, body, 415, header{"Content-Type": "text/plain"})
			tr.do(open, method, path, `["`+strings.Repeat("x", 1000)+`"]`, 413, nil)
		}
		if name == "POST /oauth/token" {
			continue
		}
		tr.do(guarded, method, path, body, 401, nil)
		if strings.HasSuffix(name, "/topics") || strings.HasPrefix(name, "GET /topics") {
			tr.do(guarded, method, path, body, 403, token("clients:read"))
		} else {
			tr.do(guarded, method, path, body, 403, reader)
		}
	}
	for _, request := range refusedRequests {
		method, path, _ := strings.Cut(request, " ")
		tr.do(open, method, path, "", 422, nil)
	}
	form := header{"Content-Type": "application/x-www-form-urlencoded"}
	tr.do(guarded, "POST", "/oauth/token", "grant_type=password", 400, form)
	tr.do(guarded, "POST", "/oauth/token", "grant_type=client_credentials&client_id=x&client_secret=y", 401, form)
	tr.do(guarded, "POST", "/oauth/token", validRequests["POST /oauth/token"][1], 401, nil)
	unkeyed, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	off := httptest.NewServer(httpapi.New(unkeyed, httpapi.Config{Logger: silent}))
	t.Cleanup(off.Close)
	tr.do(off.URL, "POST", "/oauth/token", validRequests["POST /oauth/token"][1], 404, nil)

	// The life of all there is.
	full := func(more header) header {
		all := maps.Clone(admin)
		maps.Copy(all, more)
		return all
	}
	represented := full(header{"Prefer": "return=representation", "X-Request-ID": "req-1"})
	id := idIn(t, tr.do(guarded, "POST", "/clients", `{"name":"n","scopes":"topics:read"}`, 201, admin), "id")
	tr.do(guarded, "GET", "/clients/"+id, "", 200, admin)
	tr.do(guarded, "GET", "/clients", "", 200, admin)
	tr.do(guarded, "PUT", "/clients/"+id, `{"name":"m","scopes":"topics:read","is_active":false}`, 200, admin)
	tr.do(guarded, "DELETE", "/clients/"+id, "", 204, admin)

	tr.do(guarded, "POST", "/topics", `{"id":"user-events"}`, 201, admin)
	tr.do(guarded, "POST", "/topics", `{"id":"user-events"}`, 409, admin)
	tr.do(guarded, "GET", "/topics/user-events", "", 200, admin)
	tr.do(guarded, "GET", "/topics", "", 200, admin)
	subscription := `{"id":"s","topic_id":"user-events","filter":{"country":["BR",1,true]},"max_delivery_attempts":1,"backoff_min_seconds":5,"backoff_max_seconds":300,"ack_deadline_seconds":60}`
	tr.do(guarded, "POST", "/subscriptions", subscription, 201, admin)
	tr.do(guarded, "POST", "/subscriptions", subscription, 409, admin)
	tr.do(guarded, "POST", "/subscriptions", `{"id":"none","topic_id":"none"}`, 404, admin)
	tr.do(guarded, "GET", "/subscriptions/s", "", 200, admin)
	tr.do(guarded, "GET", "/subscriptions", "", 200, admin)
	tr.do(guarded, "POST", "/topics/user-events/messages", `[{"country":"BR"},{"country":"JP"}]`, 204, admin)
	tr.do(guarded, "POST", "/topics/user-events/messages", `{"messages":[{"payload":{"country":1},"attributes":{"k":"v"}}]}`, 201, represented)
	messages := func() (ids []string) {
		text := tr.do(guarded, "GET", "/subscriptions/s/messages?consumer_id=w&wait_seconds=1", "", 200, admin)
		var answer struct{ Data []message }
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			t.Fatal(err)
		}
		for _, msg := range answer.Data {
			ids = append(ids, `"`+msg.ID+`"`)
		}
		return ids
	}
	ids := messages()
	if len(ids) == 1 { // another test's transaction was in progress between the two
		ids = append(ids, messages()...)
	}
	if len(ids) != 2 {
		t.Fatalf("consumed %v, want two messages", ids)
	}
	tr.do(guarded, "GET", "/subscriptions/s/metrics", "", 200, admin)
	both := "[" + strings.Join(ids, ",") + "]"
	tr.do(guarded, "POST", "/subscriptions/s/leases", `{"ids":`+both+`,"ack_deadline_seconds":600}`, 200, represented)
	tr.do(guarded, "POST", "/subscriptions/s/leases", `{"ids":`+both+`,"ack_deadline_seconds":600}`, 204, admin)
	deliveries := `{"deliveries":[{"id":` + ids[0] + `,"delivery_attempts":1}],`
	tr.do(guarded, "POST", "/subscriptions/s/leases", deliveries+`"ack_deadline_seconds":600}`, 204, admin)
	tr.do(guarded, "POST", "/subscriptions/s/nacks", deliveries+`"dead_letter":true,"error":"no"}`, 204, admin)
	tr.do(guarded, "POST", "/subscriptions/s/nacks", both, 200, represented)
	tr.do(guarded, "POST", "/subscriptions/s/nacks", `{"ids":`+both+`,"delay_seconds":0}`, 204, admin)
	if text := tr.do(guarded, "GET", "/subscriptions/s/dlq", "", 200, admin); !strings.Contains(text, "attributes") {
		t.Errorf("the dead letters are %s, want one with attributes among them", text)
	}
	tr.do(guarded, "POST", "/subscriptions/s/dlq/reprocess", "["+ids[0]+"]", 200, represented)
	tr.do(guarded, "POST", "/subscriptions/s/dlq/reprocess", "["+ids[1]+"]", 204, admin)
	messages()
	tr.do(guarded, "POST", "/subscriptions/s/acks", both, 200, represented)
	tr.do(guarded, "POST", "/subscriptions/s/acks", both, 204, admin)
	tr.do(guarded, "DELETE", "/subscriptions/s", "", 204, admin)
	tr.do(guarded, "DELETE", "/topics/user-events", "", 204, admin)

	tr.do(guarded, "GET", "/liveness", "", 200, nil)
	tr.do(guarded, "GET", "/readiness", "", 200, nil)
	tr.do(outdated, "GET", "/readiness", "", 503, nil)
	tr.do(guarded, "GET", "/metrics", "", 200, nil)
	tr.do(guarded, "GET", "/openapi.json", "", 200, nil)
	page := tr.do(guarded, "GET", "/docs", "", 200, nil) + tr.do(guarded, "GET", "/redoc", "", 200, nil)
	for _, file := range regexp.MustCompile(`"docs/[^"]+"`).FindAllString(page, -1) {
		tr.do(guarded, "GET", "/"+strings.Trim(file, `"`), "", 200, nil)
	}
	tr.do(guarded, "GET", "/docs/none.js", "", 404, nil)

	for name, op := range operations(t) {
		for status := range op.Responses {
			var code int
			if _, err := fmt.Sscan(status, &code); err != nil {
				t.Errorf("%s has the status %q", name, status)
			}
			if !tr.seen[name][code] && notProvoked[code] == "" {
				t.Errorf("%s never answered with %s, which is documented", name, status)
			}
		}
		if len(tr.seen[name]) == 0 {
			t.Errorf("%s was never called", name)
		}
	}
}
