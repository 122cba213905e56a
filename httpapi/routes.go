package httpapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/julienschmidt/httprouter"

	"github.com/fastpubsub/fastpubsub/internal/idrule"
)

// A route is one operation of the API.
type route struct {
	method  string
	pattern string
	// scope is what a caller needs, RESOURCE:ACTION, or public. Where the pattern has an id, the same scope for that id alone
	// does too.
	scope string
	// resource is what the operation is about, for the texts of errors: "topic" for one.
	resource string
	handle   func(http.ResponseWriter, *http.Request) error
}

func (a *API) routes() []route {
	return append([]route{
		{http.MethodPost, "/topics", "topics:create", "topic", a.createTopic},
		{http.MethodGet, "/topics", "topics:read", "topic", a.listTopics},
		{http.MethodGet, "/topics/:id", "topics:read", "topic", a.getTopic},
		{http.MethodDelete, "/topics/:id", "topics:delete", "topic", a.deleteTopic},
		{http.MethodPost, "/topics/:id/messages", "topics:publish", "topic", a.publish},

		{http.MethodPost, "/subscriptions", "subscriptions:create", "subscription", a.createSubscription},
		{http.MethodGet, "/subscriptions", "subscriptions:read", "subscription", a.listSubscriptions},
		{http.MethodGet, "/subscriptions/:id", "subscriptions:read", "subscription", a.getSubscription},
		{http.MethodDelete, "/subscriptions/:id", "subscriptions:delete", "subscription", a.deleteSubscription},
		{http.MethodGet, consumePattern, "subscriptions:consume", "subscription", a.consume},
		{http.MethodPost, "/subscriptions/:id/acks", "subscriptions:consume", "subscription", a.ack},
		{http.MethodPost, "/subscriptions/:id/nacks", "subscriptions:consume", "subscription", a.nack},
		{http.MethodPost, "/subscriptions/:id/leases", "subscriptions:consume", "subscription", a.extend},
		{http.MethodGet, "/subscriptions/:id/dlq", "subscriptions:consume", "subscription", a.listDeadLetters},
		{http.MethodPost, "/subscriptions/:id/dlq/reprocess", "subscriptions:consume", "subscription", a.reprocess},
		{http.MethodGet, "/subscriptions/:id/metrics", "subscriptions:read", "subscription", a.metrics},

		{http.MethodPost, "/clients", "clients:create", "client", a.createClient},
		{http.MethodGet, "/clients", "clients:read", "client", a.listClients},
		{http.MethodGet, "/clients/:id", "clients:read", "client", a.getClient},
		{http.MethodPut, "/clients/:id", "clients:update", "client", a.updateClient},
		{http.MethodDelete, "/clients/:id", "clients:delete", "client", a.deleteClient},
		{http.MethodPost, "/oauth/token", public, "token endpoint", a.issueToken},

		{http.MethodGet, "/liveness", public, "", a.liveness},
		{http.MethodGet, "/readiness", public, "", a.readiness},
		{http.MethodGet, "/metrics", public, "", a.prometheus},
	}, a.docsRoutes()...)
}

// public is the scope of a route that asks nobody for a token.
const public = "public"

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
		router.Handle(rt.method, rt.pattern, a.serve(rt))
		if rt.method == http.MethodGet && rt.pattern != consumePattern {
			router.Handle(http.MethodHead, rt.pattern, a.serve(rt))
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

// serve runs a route's handler, for who may call it, and answers with its error, if it returns one.
func (a *API) serve(rt route) httprouter.Handle {
	path := pathLabel(rt.pattern)
	return func(w http.ResponseWriter, r *http.Request, params httprouter.Params) {
		info := infoOf(r)
		info.route, info.path, info.params = rt.pattern, path, params
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		inProgress := a.requests.inProgress.WithLabelValues(r.Method, path)
		inProgress.Inc()
		defer inProgress.Dec()
		err := a.authorize(w, r, rt)
		if err == nil {
			err = rt.handle(w, r)
		}
		if err != nil {
			a.fail(w, r, rt, err)
		}
	}
}

// pathID returns the id in the path. One that cannot exist is not found without asking for it, since the database takes
// no text that is not UTF-8.
func pathID(r *http.Request) (string, error) {
	id := infoOf(r).params.ByName("id")
	if kind, _ := idrule.Check(id); kind != "" {
		return "", errNoSuchID
	}
	return id, nil
}
