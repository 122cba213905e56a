package httpapi

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

// Routes are the route table: "GET /topics/{id}".
func (a *API) Routes() []string {
	var all []string
	for _, rt := range a.routes() {
		all = append(all, rt.method+" "+pathLabel(rt.pattern))
	}
	return all
}
