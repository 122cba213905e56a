package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub/httpapi"
)

// The pages and all that they load are there, packed for those who take it so, and cached for as long as they may be.
func TestDocs(t *testing.T) {
	t.Parallel()
	api := httpapi.New(&broker{}, httpapi.Config{Logger: silent}) // which asks the broker nothing
	const forever, revalidate = "public, max-age=31536000, immutable", "no-cache"
	type want struct{ contentType, cacheControl, style string }
	wants := map[string]want{
		"/openapi.json": {"application/json", revalidate, "style-src 'self'"},
		"/docs":         {"text/html; charset=utf-8", revalidate, "style-src 'self'"},
		"/redoc":        {"text/html; charset=utf-8", revalidate, "style-src 'self' 'unsafe-inline'"},
	}
	types := map[string]string{"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "png": "image/png"}
	for _, page := range []string{"/docs", "/redoc"} {
		text := do(api, "GET", page, "", nil).Body.String()
		if regexp.MustCompile(`<script>|<style|style=|\son[a-z]+=|https?://`).MatchString(text) {
			t.Errorf("%s has inline scripts or styles, or something from elsewhere:\n%s", page, text)
		}
		for _, match := range regexp.MustCompile(`"(docs/[^"]+\.([a-z]+))"`).FindAllStringSubmatch(text, -1) {
			wants["/"+match[1]] = want{types[match[2]], forever, "style-src 'self'"}
		}
	}
	if len(wants) < 3+6 {
		t.Errorf("the pages load only %v", wants)
	}
	for path, want := range wants {
		plain, packed := do(api, "GET", path, "", nil), do(api, "GET", path, "", header{"Accept-Encoding": "br, gzip;q=0.5"})
		for _, w := range []*httptest.ResponseRecorder{plain, packed} {
			h := w.Header()
			if w.Code != 200 || h.Get("Content-Type") != want.contentType || h.Get("Cache-Control") != want.cacheControl ||
				h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s: %d %v", path, w.Code, h)
			}
			policy := h.Get("Content-Security-Policy")
			if !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; ") || !strings.HasSuffix(policy, "; "+want.style) ||
				strings.Contains(policy, "unsafe-eval") {
				t.Errorf("%s has the policy %s", path, policy)
			}
		}
		if got := plain.Header().Get("Content-Encoding"); got != "" {
			t.Errorf("%s is packed as %s for a client that did not ask for it", path, got)
		}
		if got := packed.Header().Get("Content-Encoding"); got != "gzip" {
			t.Errorf("%s is packed as %q, want gzip", path, got)
		}
		unzip, err := gzip.NewReader(packed.Body)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		unpacked, err := io.ReadAll(unzip)
		if err != nil || !bytes.Equal(unpacked, plain.Body.Bytes()) || len(unpacked) == 0 {
			t.Errorf("%s: unpacked are %d bytes (%v), plain ones are %d", path, len(unpacked), err, plain.Body.Len())
		}
		etag := plain.Header().Get("ETag")
		for _, tags := range []string{etag, strings.TrimPrefix(etag, "W/"), `"x", ` + etag, "*"} {
			if w := do(api, "GET", path, "", header{"If-None-Match": tags}); w.Code != 304 || w.Body.Len() > 0 || w.Header().Get("ETag") != etag {
				t.Errorf("%s with If-None-Match: %s: %d, %d bytes", path, tags, w.Code, w.Body.Len())
			}
		}
		if w := do(api, "GET", path, "", header{"If-None-Match": `"x"`, "Accept-Encoding": "gzip;q=0"}); w.Code != 200 || w.Header().Get("Content-Encoding") != "" {
			t.Errorf("%s with another tag, and gzip refused: %d %v", path, w.Code, w.Header())
		}
	}
	if !json.Valid(do(api, "GET", "/openapi.json", "", nil).Body.Bytes()) {
		t.Error("openapi.json is not JSON")
	}
	for _, path := range []string{"/docs/none.js", "/docs/openapi.json", "/docs/swagger.js"} {
		if w := do(api, "GET", path, "", nil); w.Code != 404 || w.Header().Get("Cache-Control") != "" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
}

// Nobody needs a token for the pages, and for metrics; they can be turned off.
func TestDocsAccess(t *testing.T) {
	t.Parallel()
	guarded := httpapi.New(working(), httpapi.Config{Logger: silent, Authenticate: true})
	without := httpapi.New(working(), httpapi.Config{Logger: silent, DisableDocs: true})
	for path, off := range map[string]int{"/openapi.json": 404, "/docs": 404, "/redoc": 404, "/metrics": 200} {
		if w := do(guarded, "GET", path, "", nil); w.Code != 200 {
			t.Errorf("%s without a token: %d", path, w.Code)
		}
		if w := do(without, "GET", path, "", nil); w.Code != off {
			t.Errorf("%s with docs turned off: %d, want %d", path, w.Code, off)
		}
	}
}

// An API can be one part of a server.
func ExampleNew_prefix() {
	api := httpapi.New(working(), httpapi.Config{Logger: silent}) // of a *fastpubsub.Broker, in a program
	mux := http.NewServeMux()
	mux.Handle("/pubsub/", http.StripPrefix("/pubsub", api))

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/pubsub/topics/t", nil))
	fmt.Println(w.Body)
	// Output: {"id":"t","created_at":"2025-12-29T15:30:00Z"}
}
