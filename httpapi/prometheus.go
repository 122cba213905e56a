package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fastpubsub/fastpubsub"
)

// otherLabel stands for what has no label of its own, so that clients cannot make labels up. No id, path or method is
// written like this.
const otherLabel = "(other)"

// registerMetrics gives the API its metrics and the handler of GET /metrics. It panics if the registerer has such metrics already.
func (a *API) registerMetrics() {
	if a.config.Registerer == nil {
		a.config.Registerer = prometheus.NewRegistry()
	}
	if a.config.Gatherer == nil {
		a.config.Gatherer = prometheus.DefaultGatherer
		if gatherer, ok := a.config.Registerer.(prometheus.Gatherer); ok {
			a.config.Gatherer = gatherer
		}
	}
	a.requests = newRequestMetrics(a.config.Registerer)
	counting := newCountingBroker(a.broker, a.config.Registerer)
	a.config.Registerer.MustRegister(newSubscriptionCollector(a.broker, a.config.Logger, counting.prune))
	a.broker = counting
	a.exposition = promhttp.HandlerFor(a.config.Gatherer, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(a.config.Logger.Handler(), slog.LevelWarn),
		ErrorHandling: promhttp.ContinueOnError,
	})
}

func (a *API) prometheus(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	a.exposition.ServeHTTP(w, r)
	return nil
}

// requestMetrics are about requests, whatever they are about.
type requestMetrics struct {
	total      *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	inProgress *prometheus.GaugeVec
}

func newRequestMetrics(registerer prometheus.Registerer) *requestMetrics {
	m := &requestMetrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total",
			Help: "Requests by method, route and status.",
		}, []string{"method", "path", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "http_request_duration_seconds",
			Help:    "How long requests took, by method and route. Consumers may wait for messages for up to 30 seconds.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"method", "path"}),
		inProgress: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "http_requests_in_progress",
			Help: "Requests that are being answered, by method and route.",
		}, []string{"method", "path"}),
	}
	registerer.MustRegister(m.total, m.duration, m.inProgress)
	return m
}

// observe counts an answer.
func (m *requestMetrics) observe(method, path string, status int, took time.Duration) {
	if status == 0 {
		status = http.StatusOK // what net/http sends for a handler that wrote nothing
	}
	if !slices.Contains(knownMethods, method) {
		method = otherLabel
	}
	m.total.WithLabelValues(method, path, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(method, path).Observe(took.Seconds())
}

var knownMethods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}

// pathLabel is a route's pattern as the documentation writes it: /topics/{id}.
func pathLabel(pattern string) string {
	parts := strings.Split(pattern, "/")
	for i, part := range parts {
		if name, ok := strings.CutPrefix(part, ":"); ok {
			parts[i] = "{" + name + "}"
		}
	}
	return strings.Join(parts, "/")
}

// A countingBroker counts the messages that go through the API, by topic and subscription.
type countingBroker struct {
	Broker
	topics, subscriptions                            *labels
	published, delivered, acked, nacked, reprocessed *prometheus.CounterVec
}

func newCountingBroker(broker Broker, registerer prometheus.Registerer) *countingBroker {
	counter := func(name, help, label string) *prometheus.CounterVec {
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fastpubsub_api_" + name, Help: help}, []string{label})
		registerer.MustRegister(vec)
		return vec
	}
	b := &countingBroker{
		Broker:      broker,
		published:   counter("published_messages_total", "Messages published through this process, by topic.", "topic"),
		delivered:   counter("delivered_messages_total", "Messages handed to consumers by this process, each time they were.", "subscription"),
		acked:       counter("acked_messages_total", "Messages acked through this process.", "subscription"),
		nacked:      counter("nacked_messages_total", "Messages nacked through this process.", "subscription"),
		reprocessed: counter("reprocessed_messages_total", "Dead letters reprocessed through this process.", "subscription"),
	}
	b.topics = newLabels(b.published)
	b.subscriptions = newLabels(b.delivered, b.acked, b.nacked, b.reprocessed)
	return b
}

func (b *countingBroker) Publish(ctx context.Context, topicID string, msgs ...fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
	ids, err := b.Broker.Publish(ctx, topicID, msgs...)
	if err == nil {
		b.topics.add(b.published, topicID, len(ids))
	}
	return ids, err
}

func (b *countingBroker) Consume(ctx context.Context, subscriptionID string, options fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
	msgs, err := b.Broker.Consume(ctx, subscriptionID, options)
	if err == nil {
		b.subscriptions.add(b.delivered, subscriptionID, len(msgs))
	}
	return msgs, err
}

func (b *countingBroker) Ack(ctx context.Context, subscriptionID string, ids []fastpubsub.ID) (int, error) {
	n, err := b.Broker.Ack(ctx, subscriptionID, ids)
	if err == nil {
		b.subscriptions.add(b.acked, subscriptionID, n)
	}
	return n, err
}

func (b *countingBroker) Nack(ctx context.Context, subscriptionID string, deliveries []fastpubsub.Delivery, options fastpubsub.NackOptions) (int, error) {
	n, err := b.Broker.Nack(ctx, subscriptionID, deliveries, options)
	if err == nil {
		b.subscriptions.add(b.nacked, subscriptionID, n)
	}
	return n, err
}

func (b *countingBroker) Reprocess(ctx context.Context, subscriptionID string, ids []fastpubsub.ID) (int, error) {
	n, err := b.Broker.Reprocess(ctx, subscriptionID, ids)
	if err == nil {
		b.subscriptions.add(b.reprocessed, subscriptionID, n)
	}
	return n, err
}

func (b *countingBroker) DeleteTopic(ctx context.Context, id string) error {
	err := b.Broker.DeleteTopic(ctx, id) // its subscriptions are found missing by the next scrape
	if err == nil {
		b.topics.remove(id)
	}
	return err
}

func (b *countingBroker) DeleteSubscription(ctx context.Context, id string) error {
	err := b.Broker.DeleteSubscription(ctx, id)
	if err == nil {
		b.subscriptions.remove(id)
	}
	return err
}

// prune forgets what does not exist any more. The lists are of a time after since, and complete, or nil.
func (b *countingBroker) prune(topics, subscriptions []string, since time.Time) {
	b.topics.prune(topics, since)
	b.subscriptions.prune(subscriptions, since)
}

// maxLabels is how many topics, and how many subscriptions, have series of their own. The others share one.
const maxLabels = 1000

// labels are the ids that have series of their own in some counters. They exist, or did when they were counted.
type labels struct {
	counters []*prometheus.CounterVec

	mu   sync.Mutex           // protects used
	used map[string]time.Time // when something was counted last
}

func newLabels(counters ...*prometheus.CounterVec) *labels {
	return &labels{counters: counters, used: map[string]time.Time{}}
}

func (l *labels) add(counter *prometheus.CounterVec, id string, n int) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock() // so that no series comes back after it was removed
	if _, ok := l.used[id]; !ok && len(l.used) >= maxLabels {
		id = otherLabel
	} else {
		l.used[id] = time.Now()
	}
	counter.WithLabelValues(id).Add(float64(n))
}

func (l *labels) remove(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeLocked(id)
}

func (l *labels) removeLocked(id string) {
	delete(l.used, id)
	for _, counter := range l.counters {
		counter.DeleteLabelValues(id)
	}
}

// prune removes what is not in ids, which are sorted, unless it was counted since. nil is no list.
func (l *labels) prune(ids []string, since time.Time) {
	if ids == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, used := range l.used {
		if _, exists := slices.BinarySearch(ids, id); !exists && used.Before(since) {
			l.removeLocked(id)
		}
	}
}

// MaintenanceMetrics registers metrics of maintenance and returns the function that counts a pass, for
// [fastpubsub.Config].OnMaintenance. It panics if the registerer has such metrics already.
func MaintenanceMetrics(registerer prometheus.Registerer) func(fastpubsub.MaintenancePass) {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "fastpubsub_maintenance_" + name, Help: help})
		registerer.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "fastpubsub_maintenance_" + name, Help: help})
		registerer.MustRegister(g)
		return g
	}
	passes := counter("passes_total", "Passes that this process made.")
	failed := counter("failed_passes_total", "Passes that ended with an error.")
	last := gauge("last_success_timestamp_seconds", "When the last pass without an error ended.")
	duration := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "fastpubsub_maintenance_duration_seconds",
		Help:    "How long passes took.",
		Buckets: []float64{.01, .05, .1, .5, 1, 5, 10, 60, 300},
	})
	registerer.MustRegister(duration)
	released := counter("released_messages_total", "Messages whose ack deadline had passed and that are delivered again.")
	dead := counter("dead_letters_total", "Messages whose ack deadline had passed for the last time.")
	busy := counter("busy_subscriptions_total", "Times that a subscription was left to the next pass, since others held it.")
	slots := counter("emptied_slots_total", "Slots that were emptied.")
	bytes := counter("freed_bytes_total", "Bytes of the slots that were emptied, without indexes.")
	rotated := counter("rotated_rings_total", "Times that a ring went on to its next slot.")
	spilled := counter("spilled_messages_total", "Messages that were moved out of the log for subscriptions that lag.")
	needed := gauge("needed_slots", "Slots that were left and that a subscription needed at the last pass.")
	waiting := gauge("waiting_slots", "Slots that nothing needed at the last pass, but that an older transaction may look into.")

	return func(pass fastpubsub.MaintenancePass) {
		passes.Inc()
		duration.Observe(pass.Took.Seconds())
		if pass.Err != nil {
			failed.Inc()
		} else {
			last.SetToCurrentTime()
		}
		released.Add(float64(pass.Stuck.Released))
		dead.Add(float64(pass.Stuck.DeadLetters))
		busy.Add(float64(pass.Stuck.Busy))
		slots.Add(float64(pass.Freed.Slots))
		bytes.Add(float64(pass.Freed.Bytes))
		rotated.Add(float64(pass.Freed.Rotated))
		spilled.Add(float64(pass.Freed.Spilled))
		needed.Set(float64(pass.Freed.Needed))
		waiting.Set(float64(pass.Freed.Waiting))
	}
}
