package httpapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"

	swaggerui "github.com/swaggest/swgui/v5/static"
)

// openAPIDocument describes the API. All addresses in it are relative to where it is.
//
//go:embed openapi.json
var openAPIDocument []byte

//go:embed docs/*.html docs/*.css docs/*.js docs/*.js.gz
var docsFiles embed.FS

// docsPolicy lets the pages load and ask what this server has, and nothing else, and run no script that is in the page.
const (
	docsPolicy = docsPolicyStart + "style-src 'self'"

	// ReDoc puts its styles into the page while it runs: nobody can foresee their text, and it stops without them.
	redocPolicy = docsPolicyStart + "style-src 'self' 'unsafe-inline'"

	docsPolicyStart = "default-src 'none'; script-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; " +
		"form-action 'none'; frame-ancestors 'none'; "
)

// A docsFile is something that never changes while the process runs.
type docsFile struct {
	contentType string
	gzipped     []byte
	etag        string
	policy      string // of a page, for what it may load
}

func newDocsFile(name string, gzipped []byte) docsFile {
	return docsFile{contentTypes[path.Ext(name)], gzipped, `W/"` + hashOf(gzipped) + `"`, docsPolicy}
}

// contentTypes are not the system's, which differ.
var contentTypes = map[string]string{
	".css":  "text/css; charset=utf-8",
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".json": "application/json",
	".png":  "image/png",
}

func hashOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:8])
}

// docs are the pages and what they are made of: all of it is in the binary.
type docs struct {
	openAPI, swagger, redoc docsFile
	files                   map[string]docsFile // by their names in addresses, which have a hash
}

// loadDocs reads the embedded files, at first use. That they can be read is for the tests to see.
var loadDocs = sync.OnceValue(func() *docs {
	d := &docs{files: map[string]docsFile{}}
	d.openAPI = newDocsFile("openapi.json", compress(openAPIDocument))
	addresses := map[string]string{} // of files, by their names
	add := func(fsys fs.FS, name string) {
		content, err := fs.ReadFile(fsys, name)
		if err != nil {
			panic(err)
		}
		name, isGzipped := strings.CutSuffix(path.Base(name), ".gz")
		if !isGzipped {
			content = compress(content)
		}
		extension := path.Ext(name)
		file := newDocsFile(name, content)
		address := strings.TrimSuffix(name, extension) + "." + hashOf(content) + extension
		d.files[address] = file
		addresses[name] = "docs/" + address
	}
	for _, name := range []string{"swagger-ui-bundle.js.gz", "swagger-ui.css.gz", "favicon-32x32.png"} {
		add(swaggerui.FS, name)
	}
	for _, name := range []string{"redoc.standalone.js.gz", "page.css", "swagger.js", "redoc.js"} {
		add(docsFiles, "docs/"+name)
	}
	page := func(name string) docsFile {
		t := template.New(name).Funcs(template.FuncMap{"file": func(name string) (string, error) {
			if addresses[name] == "" {
				return "", fmt.Errorf("there is no file %q", name)
			}
			return addresses[name], nil
		}})
		var text bytes.Buffer
		if err := template.Must(t.ParseFS(docsFiles, "docs/"+name)).Execute(&text, nil); err != nil {
			panic(err)
		}
		return newDocsFile(name, compress(text.Bytes()))
	}
	d.swagger, d.redoc = page("swagger.html"), page("redoc.html")
	d.redoc.policy = redocPolicy
	return d
})

func compress(content []byte) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestCompression) // the level is a valid one
	w.Write(content)
	w.Close()
	return buf.Bytes()
}

// docsRoutes are all that the documentation has. They need no token, and no database.
func (a *API) docsRoutes() []route {
	if a.config.DisableDocs {
		return nil
	}
	return []route{
		{http.MethodGet, "/openapi.json", public, "", a.openAPI},
		{http.MethodGet, "/docs", public, "", a.swaggerUI},
		{http.MethodGet, "/docs/:file", public, "", a.docsFile},
		{http.MethodGet, "/redoc", public, "", a.redoc},
	}
}

// What has a fixed address is asked for again each time, and sent if it has changed.
const revalidate = "no-cache"

func (a *API) openAPI(w http.ResponseWriter, r *http.Request) error {
	return loadDocs().openAPI.serve(w, r, revalidate)
}

func (a *API) swaggerUI(w http.ResponseWriter, r *http.Request) error {
	return loadDocs().swagger.serve(w, r, revalidate)
}

func (a *API) redoc(w http.ResponseWriter, r *http.Request) error {
	return loadDocs().redoc.serve(w, r, revalidate)
}

func (a *API) docsFile(w http.ResponseWriter, r *http.Request) error {
	file, ok := loadDocs().files[infoOf(r).params.ByName("file")]
	if !ok {
		return &statusError{http.StatusNotFound, "Not Found"}
	}
	return file.serve(w, r, "public, max-age=31536000, immutable")
}

func (f docsFile) serve(w http.ResponseWriter, r *http.Request, cacheControl string) error {
	h := w.Header()
	h.Set("Cache-Control", cacheControl)
	h.Set("Etag", f.etag)
	h.Set("Vary", "Accept-Encoding")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", f.policy)
	h.Set("Referrer-Policy", "no-referrer")
	if hasToken(r.Header["If-None-Match"], func(tag string) bool {
		return tag == "*" || strings.TrimPrefix(tag, "W/") == strings.TrimPrefix(f.etag, "W/")
	}) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", f.contentType)
	content := f.gzipped
	if acceptsGzip(r) {
		h.Set("Content-Encoding", "gzip")
	} else {
		unzip, err := gzip.NewReader(bytes.NewReader(f.gzipped))
		if err != nil {
			return err
		}
		if content, err = io.ReadAll(unzip); err != nil {
			return err
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(content)))
	w.WriteHeader(http.StatusOK)
	w.Write(content) // an error means that the client is gone
	return nil
}

// acceptsGzip reports whether the client named gzip without a weight of 0.
func acceptsGzip(r *http.Request) bool {
	return hasToken(r.Header["Accept-Encoding"], func(token string) bool {
		name, weight, _ := strings.Cut(token, ";")
		_, q, _ := strings.Cut(weight, "=")
		refused := strings.Trim(strings.TrimSpace(q), "0.") == "" && q != ""
		return strings.EqualFold(strings.TrimSpace(name), "gzip") && !refused
	})
}

// hasToken reports whether one of the elements of a header with commas is the one that is meant.
func hasToken(lines []string, is func(token string) bool) bool {
	for _, line := range lines {
		for token := range strings.SplitSeq(line, ",") {
			if is(strings.TrimSpace(token)) {
				return true
			}
		}
	}
	return false
}
