package httpapi

import (
	"net/http"
	"strings"

	"github.com/julienschmidt/httprouter"
)

// A route is one operation of the API.
type route struct {
	method  string
	pattern string
	// resource is what the operation is about, for the texts of errors: "topic" or "subscription".
	resource string
	handle   func(http.ResponseWriter, *http.Request) error
}

func (a *API) routes() []route {
	return append([]route{
		{http.MethodPost, "/topics", "topic", a.createTopic},
		{http.MethodGet, "/topics", "topic", a.listTopics},
		{http.MethodGet, "/topics/:id", "topic", a.getTopic},
		{http.MethodDelete, "/topics/:id", "topic", a.deleteTopic},
		{http.MethodPost, "/topics/:id/messages", "topic", a.publish},

		{http.MethodPost, "/subscriptions", "subscription", a.createSubscription},
		{http.MethodGet, "/subscriptions", "subscription", a.listSubscriptions},
		{http.MethodGet, "/subscriptions/:id", "subscription", a.getSubscription},
		{http.MethodDelete, "/subscriptions/:id", "subscription", a.deleteSubscription},
		{http.MethodGet, consumePattern, "subscription", a.consume},
		{http.MethodPost, "/subscriptions/:id/acks", "subscription", a.ack},
		{http.MethodPost, "/subscriptions/:id/nacks", "subscription", a.nack},
		{http.MethodPost, "/subscriptions/:id/leases", "subscription", a.extend},
		{http.MethodGet, "/subscriptions/:id/dlq", "subscription", a.listDeadLetters},
		{http.MethodPost, "/subscriptions/:id/dlq/reprocess", "subscription", a.reprocess},
		{http.MethodGet, "/subscriptions/:id/metrics", "subscription", a.metrics},

		{http.MethodGet, "/liveness", "", a.liveness},
		{http.MethodGet, "/readiness", "", a.readiness},
		{http.MethodGet, "/metrics", "", a.prometheus},
	}, a.docsRoutes()...)
}

const consumePattern = "/subscriptions/:id/messages"

// router serves the routes, each GET as HEAD too: except for consume, which takes messages that HEAD would not show.
func (a *API) router() http.Handler {
	router := httprouter.New()
	router.RedirectTrailingSlash = false
	router.RedirectFixedPath = false
	router.NotFound = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeDetail(w, http.StatusNotFound, "Not Found")
	})
	router.MethodNotAllowed = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeDetail(w, http.StatusMethodNotAllowed, "Method Not Allowed")
	})
	router.GlobalOPTIONS = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNoContent)
	})
	for _, rt := range a.routes() {
		router.Handler(rt.method, rt.pattern, a.serve(rt))
		if rt.method == http.MethodGet && rt.pattern != consumePattern {
			router.Handler(http.MethodHead, rt.pattern, a.serve(rt))
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The router sees the path decoded: an escaped slash would choose another route.
		if strings.Contains(strings.ToUpper(r.URL.RawPath), "%2F") {
			router.NotFound.ServeHTTP(w, r)
			return
		}
		router.ServeHTTP(w, r)
	})
}

// serve runs a route's handler and answers with its error, if it returns one.
func (a *API) serve(rt route) http.Handler {
	path := pathLabel(rt.pattern)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		infoOf(r).route = rt.pattern
		inProgress := a.requests.inProgress.WithLabelValues(r.Method, path)
		inProgress.Inc()
		defer inProgress.Dec()
		if err := rt.handle(w, r); err != nil {
			a.fail(w, r, rt, err)
		}
	})
}

// pathID returns the id in the path. One that cannot exist is not found without asking for it, since the database takes
// no text that is not UTF-8.
func pathID(r *http.Request) (string, error) {
	id := httprouter.ParamsFromContext(r.Context()).ByName("id")
	if kind, _ := checkID(id); kind != "" {
		return "", errNoSuchID
	}
	return id, nil
}
