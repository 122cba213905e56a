package httpapi

import "net/http"

// For tests.
var (
	NewSubscriptionCollector = newSubscriptionCollector
	OpenAPIDocument          = openAPIDocument
	PathLabel                = pathLabel
)

const (
	CollectInterval = collectInterval
	CollectKeep     = collectKeep
	CollectAtMost   = collectAtMost
	MaxLabels       = maxLabels
)

// A RouteInfo is what the tests go by to look at all routes.
type RouteInfo struct{ Method, Pattern, Scope string }

// Public is the scope of routes that ask for no token.
const Public = public

// Routes is the table.
func Routes() []RouteInfo {
	var all []RouteInfo
	for _, rt := range (&API{}).routes() {
		all = append(all, RouteInfo{rt.method, rt.pattern, rt.scope})
	}
	return all
}

// ReadTokenForm returns the credentials in a form and its headers, and the code of the error if they are refused.
func ReadTokenForm(r *http.Request, body string) (clientID, secret, code string) {
	request, refused := readTokenForm(r, body)
	if refused != nil {
		return "", "", refused.code
	}
	return request.clientID, string(request.secret), ""
}
