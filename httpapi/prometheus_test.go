package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// serveMetered is a server whose registry has all metrics of the project, and its broker.
func serveMetered(t *testing.T) (client, *fastpubsub.Broker, *prometheus.Registry) {
	t.Helper()
	db := storetest.New(t)
	registry := prometheus.NewPedanticRegistry()
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, OnMaintenance: httpapi.MaintenanceMetrics(registry)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(httpapi.New(broker, httpapi.Config{Logger: silent, Registerer: registry}))
	t.Cleanup(server.Close)
	return client{t, server.URL}, broker, registry
}

// compare compares metrics, in the text format, by name.
func compare(t *testing.T, gatherer prometheus.Gatherer, want string, names ...string) {
	t.Helper()
	if err := testutil.GatherAndCompare(gatherer, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

// A message is published, fails, dies, is reprocessed and acked, and a scrape shows it.
func TestMetricsOfMessages(t *testing.T) {
	t.Parallel()
	c, _, registry := serveMetered(t)
	c.do("POST", "/topics", `{"id":"t"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":1}`, 201, nil)
	c.do("POST", "/topics/t/messages", `[{},{},{}]`, 204, nil)
	c.do("POST", "/topics/nowhere/messages", `[{}]`, 404, nil)
	msgs := c.consume("s")
	if len(msgs) != 3 {
		t.Fatalf("%d messages, want 3", len(msgs))
	}
	c.do("POST", "/subscriptions/s/nacks", `["`+msgs[0].ID+`","`+msgs[1].ID+`"]`, 204, nil)
	c.do("POST", "/subscriptions/s/acks", `["`+msgs[2].ID+`"]`, 204, nil)
	c.do("POST", "/subscriptions/s/dlq/reprocess", `["`+msgs[0].ID+`"]`, 204, nil)
	compare(t, registry, `
# HELP fastpubsub_api_acked_messages_total Messages acked through this process.
# TYPE fastpubsub_api_acked_messages_total counter
fastpubsub_api_acked_messages_total{subscription="s"} 1
# HELP fastpubsub_api_delivered_messages_total Messages handed to consumers by this process, each time they were.
# TYPE fastpubsub_api_delivered_messages_total counter
fastpubsub_api_delivered_messages_total{subscription="s"} 3
# HELP fastpubsub_api_nacked_messages_total Messages nacked through this process.
# TYPE fastpubsub_api_nacked_messages_total counter
fastpubsub_api_nacked_messages_total{subscription="s"} 2
# HELP fastpubsub_api_published_messages_total Messages published through this process, by topic.
# TYPE fastpubsub_api_published_messages_total counter
fastpubsub_api_published_messages_total{topic="t"} 3
# HELP fastpubsub_api_reprocessed_messages_total Dead letters reprocessed through this process.
# TYPE fastpubsub_api_reprocessed_messages_total counter
fastpubsub_api_reprocessed_messages_total{subscription="s"} 1
# HELP fastpubsub_subscription_acked_messages_total Messages acked ever, through whatever process.
# TYPE fastpubsub_subscription_acked_messages_total counter
fastpubsub_subscription_acked_messages_total{subscription="s"} 1
# HELP fastpubsub_subscription_available_messages Messages that wait to be delivered, delayed ones included.
# TYPE fastpubsub_subscription_available_messages gauge
fastpubsub_subscription_available_messages{subscription="s"} 1
# HELP fastpubsub_subscription_dead_letters Messages whose attempts are used up.
# TYPE fastpubsub_subscription_dead_letters gauge
fastpubsub_subscription_dead_letters{subscription="s"} 1
# HELP fastpubsub_subscription_delayed_messages Available messages that wait for their backoff.
# TYPE fastpubsub_subscription_delayed_messages gauge
fastpubsub_subscription_delayed_messages{subscription="s"} 0
# HELP fastpubsub_subscription_delivered_messages Messages that are with consumers.
# TYPE fastpubsub_subscription_delivered_messages gauge
fastpubsub_subscription_delivered_messages{subscription="s"} 0
# HELP fastpubsub_subscriptions Subscriptions, up to 1000.
# TYPE fastpubsub_subscriptions gauge
fastpubsub_subscriptions 1
`, "fastpubsub_api_acked_messages_total", "fastpubsub_api_delivered_messages_total", "fastpubsub_api_nacked_messages_total",
		"fastpubsub_api_published_messages_total", "fastpubsub_api_reprocessed_messages_total",
		"fastpubsub_subscription_acked_messages_total", "fastpubsub_subscription_available_messages",
		"fastpubsub_subscription_dead_letters", "fastpubsub_subscription_delayed_messages",
		"fastpubsub_subscription_delivered_messages", "fastpubsub_subscriptions")

	text := c.do("GET", "/metrics", "", 200, nil)
	for _, want := range []string{
		`http_requests_total{method="POST",path="/topics/{id}/messages",status="204"} 1`,
		`http_requests_total{method="POST",path="/topics/{id}/messages",status="404"} 1`,
		`fastpubsub_subscription_dead_letters{subscription="s"} 1`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("the scrape does not have %s", want)
		}
	}
	c.do("DELETE", "/topics/t", "", 204, nil)
	if text := c.do("GET", "/metrics", "", 200, nil); strings.Contains(text, `topic="t"`) {
		t.Error("a deleted topic is still shown")
	}
}

// Maintenance of Run is counted by what OnMaintenance is told.
func TestMetricsOfMaintenance(t *testing.T) {
	t.Parallel()
	_, broker, registry := serveMetered(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- broker.Run(ctx) }()
	for deadline := time.Now().Add(time.Minute); ; {
		text, err := scrape(registry)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "fastpubsub_maintenance_passes_total 1\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no pass was counted:\n%s", text)
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	registry = prometheus.NewPedanticRegistry()
	count := httpapi.MaintenanceMetrics(registry)
	count(fastpubsub.MaintenancePass{
		Stuck: fastpubsub.Stuck{Released: 1, DeadLetters: 2, Busy: 3},
		Freed: fastpubsub.Freed{Bytes: 4, Slots: 5, Rotated: 6, Spilled: 7, Needed: 8, Waiting: 9},
		Took:  2 * time.Second,
	})
	count(fastpubsub.MaintenancePass{Err: errors.New("away")})
	text, err := scrape(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"passes_total 2", "failed_passes_total 1", "released_messages_total 1", "dead_letters_total 2",
		"busy_subscriptions_total 3", "freed_bytes_total 4", "emptied_slots_total 5", "rotated_rings_total 6",
		"spilled_messages_total 7", "needed_slots 0", "waiting_slots 0", "duration_seconds_sum 2", "duration_seconds_count 2"} {
		if !strings.Contains(text, "\nfastpubsub_maintenance_"+want+"\n") {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
}

// scrape returns what Prometheus would get.
func scrape(registry *prometheus.Registry) (string, error) {
	w := do(httpapi.New(working(), httpapi.Config{Logger: silent, Gatherer: registry}), "GET", "/metrics", "", nil)
	if w.Code != 200 {
		return "", fmt.Errorf("the scrape's status is %d: %s", w.Code, w.Body)
	}
	text, err := io.ReadAll(w.Body)
	return string(text), err
}

func TestMetricsLint(t *testing.T) {
	t.Parallel()
	c, broker, registry := serveMetered(t)
	c.do("POST", "/topics", `{"id":"t"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"s","topic_id":"t"}`, 201, nil)
	c.do("POST", "/topics/t/messages", `[{}]`, 204, nil)
	if len(c.consume("s")) != 1 {
		t.Fatal("nothing to consume")
	}
	if _, err := broker.CleanupStuck(t.Context()); err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Requests are counted by the route and not by what clients make up.
func TestMetricsOfRequests(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	api := httpapi.New(working(), httpapi.Config{Logger: silent, Registerer: registry})
	do(api, "GET", "/topics/t", "", nil)
	do(api, "GET", "/topics/no-such", "", nil)
	do(api, "HEAD", "/topics/t", "", nil)
	do(api, "GET", "/made/up/1", "", nil)
	do(api, "GET", "/made/up/2", "", nil)
	do(api, "BREW", "/topics/t", "", nil)
	do(api, "PUT", "/topics/t", "", nil)
	compare(t, registry, `
# HELP http_requests_total Requests by method, route and status.
# TYPE http_requests_total counter
http_requests_total{method="(other)",path="(other)",status="405"} 1
http_requests_total{method="GET",path="(other)",status="404"} 2
http_requests_total{method="GET",path="/topics/{id}",status="200"} 1
http_requests_total{method="GET",path="/topics/{id}",status="404"} 1
http_requests_total{method="HEAD",path="/topics/{id}",status="200"} 1
http_requests_total{method="PUT",path="(other)",status="405"} 1
`, "http_requests_total")
	compare(t, registry, `
# HELP http_requests_in_progress Requests that are being answered, by method and route.
# TYPE http_requests_in_progress gauge
http_requests_in_progress{method="GET",path="/topics/{id}"} 0
http_requests_in_progress{method="HEAD",path="/topics/{id}"} 0
`, "http_requests_in_progress")
}

// A consumer that waits is in progress.
func TestMetricsInProgress(t *testing.T) {
	t.Parallel()
	b, started := waiting()
	registry := prometheus.NewPedanticRegistry()
	api := httpapi.New(b, httpapi.Config{Logger: silent, Registerer: registry})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := httptest.NewRequestWithContext(ctx, "GET", "/subscriptions/s/messages?consumer_id=w&wait_seconds=30", nil)
		api.ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-started
	b.listSubscriptions = func(fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) { return nil, nil }
	b.listTopics = func(fastpubsub.ListOptions) ([]fastpubsub.Topic, error) { return nil, nil }
	const want = `
# HELP http_requests_in_progress Requests that are being answered, by method and route.
# TYPE http_requests_in_progress gauge
http_requests_in_progress{method="GET",path="/subscriptions/{id}/messages"} %d
`
	compare(t, registry, fmt.Sprintf(want, 1), "http_requests_in_progress")
	cancel()
	<-done
	compare(t, registry, fmt.Sprintf(want, 0), "http_requests_in_progress")
}

// Two APIs in one process each have their own metrics, and on purpose they can share a registry.
func TestTwoAPIs(t *testing.T) {
	t.Parallel()
	one, other := httpapi.New(working(), httpapi.Config{Logger: silent}), httpapi.New(working(), httpapi.Config{Logger: silent})
	do(one, "GET", "/topics/t", "", nil)
	for api, want := range map[http.Handler]bool{one: true, other: false} {
		text := do(api, "GET", "/metrics", "", nil).Body.String()
		if strings.Contains(text, `path="/topics/{id}",status="200"} 1`) != want {
			t.Errorf("counted the request: %v, want %v:\n%s", !want, want, text)
		}
	}

	registry := prometheus.NewPedanticRegistry()
	for _, name := range []string{"a", "b"} {
		registerer := prometheus.WrapRegistererWith(prometheus.Labels{"api": name}, registry)
		do(httpapi.New(working(), httpapi.Config{Logger: silent, Registerer: registerer, Gatherer: registry}), "GET", "/topics", "", nil)
	}
	compare(t, registry, `
# HELP http_requests_total Requests by method, route and status.
# TYPE http_requests_total counter
http_requests_total{api="a",method="GET",path="/topics",status="200"} 1
http_requests_total{api="b",method="GET",path="/topics",status="200"} 1
`, "http_requests_total")
}

// slowBroker has n subscriptions; counting each takes a quarter of a second. It notes which were counted.
func slowBroker(n int) (b *broker, counted *[]string) {
	counted = new([]string)
	subs := make([]fastpubsub.Subscription, n)
	for i := range subs {
		subs[i].ID = fmt.Sprintf("s%04d", i)
	}
	return &broker{
		listTopics: func(fastpubsub.ListOptions) ([]fastpubsub.Topic, error) { return nil, nil },
		listSubscriptions: func(options fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) {
			return subs[:min(n, options.Limit)], nil
		},
		metrics: func(id string) (fastpubsub.Metrics, error) {
			time.Sleep(250 * time.Millisecond)
			*counted = append(*counted, id)
			return fastpubsub.Metrics{Available: 1}, nil
		},
	}, counted
}

func ignorePruned([]string, []string, time.Time) {}

// However often it is scraped, the collector asks the database for a second in five, in turn, and shows how old that is.
func TestCollectorIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, counted := slowBroker(12)
		c := httpapi.NewSubscriptionCollector(b, silent, ignorePruned)
		begun := time.Now()
		for range 1000 {
			testutil.CollectAndCount(c)
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("a thousand scrapes took %v", took)
		}
		first := len(*counted)
		if first < 4 || first > 6 {
			t.Errorf("counted %v in the first second", *counted)
		}
		var age float64
		for range 2 {
			time.Sleep(httpapi.CollectInterval)
			testutil.CollectAndCount(c)
		}
		if all := slices.Compact(slices.Sorted(slices.Values(*counted))); len(all) != 12 {
			t.Errorf("after three refreshes counted are %v, want all 12", all)
		}
		if n := testutil.CollectAndCount(c, "fastpubsub_subscription_available_messages"); n != 12 {
			t.Errorf("%d subscriptions are shown, want 12", n)
		}
		age = value(t, c, "fastpubsub_collector_age_seconds")
		if lowest := (2 * httpapi.CollectInterval).Seconds(); age < lowest || age > lowest+5 {
			t.Errorf("the oldest count is %v seconds old, want some %v", age, lowest)
		}
	})
}

// A scrape counts so many subscriptions at most, also where each is quick, and says if there are more than it shows at all.
func TestCollectorWithManySubscriptions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := slowBroker(httpapi.MaxLabels + 1)
		calls := 0
		b.metrics = func(string) (fastpubsub.Metrics, error) { calls++; return fastpubsub.Metrics{}, nil }
		c := httpapi.NewSubscriptionCollector(b, silent, func(_, subscriptions []string, _ time.Time) {
			if subscriptions != nil {
				t.Error("an incomplete list was taken for a complete one")
			}
		})
		if n := value(t, c, "fastpubsub_subscriptions_truncated"); n != 1 || calls != httpapi.CollectAtMost {
			t.Errorf("%d were counted, want %d; truncated is %v, want 1", calls, httpapi.CollectAtMost, n)
		}
	})
}

// value is that of a metric without labels.
func value(t *testing.T, c prometheus.Collector, name string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			m := family.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// While the database is away the last counts are shown, until they are too old, and a counter says what is going on.
func TestCollectorErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := slowBroker(1)
		c := httpapi.NewSubscriptionCollector(b, silent, ignorePruned)
		testutil.CollectAndCount(c)
		b.metrics = func(string) (fastpubsub.Metrics, error) { return fastpubsub.Metrics{}, errors.New("away") }
		time.Sleep(httpapi.CollectInterval)
		shown := func() int { return testutil.CollectAndCount(c, "fastpubsub_subscription_available_messages") }
		if shown() != 1 {
			t.Error("the last count is not shown")
		}
		if err := testutil.CollectAndCompare(c, strings.NewReader(`
# HELP fastpubsub_collector_errors_total Times that subscriptions could not be listed or counted.
# TYPE fastpubsub_collector_errors_total counter
fastpubsub_collector_errors_total 1
`), "fastpubsub_collector_errors_total"); err != nil {
			t.Error(err)
		}
		b.listSubscriptions = func(fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) { return nil, errors.New("away") }
		time.Sleep(httpapi.CollectKeep)
		if shown() != 0 {
			t.Error("a count is shown that is too old")
		}
		if n := value(t, c, "fastpubsub_collector_errors_total"); n != 2 {
			t.Errorf("%v errors, want 2", n)
		}
	})
}

// A subscription that is gone is not shown, and neither is what was counted of it.
func TestDeletedSubscriptionsVanish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := working()
		there := []fastpubsub.Subscription{subS}
		b.listSubscriptions = func(fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) { return there, nil }
		registry := prometheus.NewPedanticRegistry()
		api := httpapi.New(b, httpapi.Config{Logger: silent, Registerer: registry})
		do(api, "POST", "/subscriptions/s/acks", `[`+anID+`]`, nil)
		series := func() int {
			n, err := testutil.GatherAndCount(registry, "fastpubsub_api_acked_messages_total", "fastpubsub_subscription_dead_letters")
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := series(); n != 2 {
			t.Fatalf("%d series, want 2", n)
		}
		there = nil
		time.Sleep(httpapi.CollectInterval)
		series() // it finds out, while the counters are read
		if n := series(); n != 0 {
			t.Errorf("%d series of a subscription that is gone", n)
		}

		do(api, "POST", "/subscriptions/s/acks", `[`+anID+`]`, nil)
		do(api, "DELETE", "/subscriptions/s", "", nil)
		if n := series(); n != 0 {
			t.Errorf("%d series of a subscription that was deleted here", n)
		}
	})
}

// Topics and subscriptions beyond a thousand share one series.
func TestLabelsAreBounded(t *testing.T) {
	t.Parallel()
	b, _ := slowBroker(0)
	b.publish = func(string, []fastpubsub.NewMessage) ([]fastpubsub.ID, error) { return []fastpubsub.ID{message1}, nil }
	// A full page: there may be more topics than it has, and so no series goes.
	b.listTopics = func(o fastpubsub.ListOptions) ([]fastpubsub.Topic, error) {
		return make([]fastpubsub.Topic, o.Limit), nil
	}
	registry := prometheus.NewPedanticRegistry()
	api := httpapi.New(b, httpapi.Config{Logger: silent, Registerer: registry})
	const beyond = 5
	for i := range httpapi.MaxLabels + beyond {
		do(api, "POST", fmt.Sprintf("/topics/t%d/messages", i), `[{}]`, nil)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		if family.GetName() == "fastpubsub_api_published_messages_total" {
			for _, m := range family.GetMetric() {
				values[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if len(values) != 1+httpapi.MaxLabels || values["(other)"] != beyond {
		t.Errorf("%d series, %v in the one for others", len(values), values["(other)"])
	}
}

func TestPathLabel(t *testing.T) {
	t.Parallel()
	want := []string{"/topics", "/topics/{id}/messages", "/docs/{file}"}
	var got []string
	for _, pattern := range []string{"/topics", "/topics/:id/messages", "/docs/:file"} {
		got = append(got, httpapi.PathLabel(pattern))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
