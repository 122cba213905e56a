package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fastpubsub/fastpubsub"
)

// Counting the messages of one subscription takes up to a quarter of a second, so a scrape counts those of few, and all
// scrapes together have the database for a fifth of the time, on one connection. What it cannot do now waits its turn; what
// it shows may be some minutes old.
const (
	collectInterval = 5 * time.Second // from the start of one refresh to that of the next
	collectBudget   = time.Second     // after which no other subscription is begun
	collectTimeout  = 2 * time.Second // of one question to the database
	collectAtMost   = 200             // subscriptions
	collectKeep     = 5 * time.Minute // how old a count may be and still be shown
)

// A subscriptionCollector shows the counts of subscriptions.
type subscriptionCollector struct {
	broker Broker
	logger *slog.Logger
	// pruned gets the ids that exist, each list sorted; nil if it is not known completely.
	pruned func(topics, subscriptions []string, since time.Time)

	refreshing sync.Mutex // held by the one scrape that asks the database

	mu        sync.Mutex // protects all below
	refreshed time.Time  // when the last refresh began
	counts    map[string]*subscriptionCounts
	truncated bool // there are more subscriptions than are shown
	errors    int
}

// subscriptionCounts are those of one subscription; at is zero until they were taken.
type subscriptionCounts struct {
	fastpubsub.Metrics
	at    time.Time
	tried time.Time
}

func newSubscriptionCollector(broker Broker, logger *slog.Logger, pruned func(topics, subscriptions []string, since time.Time)) *subscriptionCollector {
	return &subscriptionCollector{broker: broker, logger: logger, pruned: pruned, counts: map[string]*subscriptionCounts{}}
}

// The metrics of subscriptions. One process's are as good as another's: do not add them up.
var (
	availableDesc = subscriptionDesc("available_messages", "Messages that wait to be delivered, delayed ones included.")
	delayedDesc   = subscriptionDesc("delayed_messages", "Available messages that wait for their backoff.")
	deliveredDesc = subscriptionDesc("delivered_messages", "Messages that are with consumers.")
	deadDesc      = subscriptionDesc("dead_letters", "Messages whose attempts are used up.")
	oldestDesc    = subscriptionDesc("oldest_unacked_age_seconds", "Age of the oldest message that is neither acked nor a dead letter, 0 if there is none.")
	ackedDesc     = subscriptionDesc("acked_messages_total", "Messages acked ever, through whatever process.")
	estimatedDesc = subscriptionDesc("available_estimated", "1 if available messages are an estimate, since a filter and much that waits make counting long.")

	shownDesc     = prometheus.NewDesc("fastpubsub_subscriptions", "Subscriptions, up to 1000.", nil, nil)
	truncatedDesc = prometheus.NewDesc("fastpubsub_subscriptions_truncated", "1 if there are more subscriptions than are counted.", nil, nil)
	ageDesc       = prometheus.NewDesc("fastpubsub_collector_age_seconds", "How old the oldest of the counts of subscriptions is that are shown.", nil, nil)
	errorsDesc    = prometheus.NewDesc("fastpubsub_collector_errors_total", "Times that subscriptions could not be listed or counted.", nil, nil)
)

func subscriptionDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("fastpubsub_subscription_"+name, help, []string{"subscription"}, nil)
}

// Describe implements [prometheus.Collector].
func (c *subscriptionCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{availableDesc, delayedDesc, deliveredDesc, deadDesc, oldestDesc, ackedDesc, estimatedDesc,
		shownDesc, truncatedDesc, ageDesc, errorsDesc} {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector]. It takes as long as one refresh, 1 second and what one question takes, if one is
// due and nobody else is at it; otherwise it asks nobody.
func (c *subscriptionCollector) Collect(metrics chan<- prometheus.Metric) {
	if c.refreshing.TryLock() {
		if c.due() {
			c.refresh()
		}
		c.refreshing.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	age := time.Duration(0)
	for id, counts := range c.counts {
		if counts.at.IsZero() || now.Sub(counts.at) > collectKeep {
			continue
		}
		age = max(age, now.Sub(counts.at))
		gauge := func(desc *prometheus.Desc, value float64) {
			metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, id)
		}
		gauge(availableDesc, float64(counts.Available))
		gauge(delayedDesc, float64(counts.Delayed))
		gauge(deliveredDesc, float64(counts.Delivered))
		gauge(deadDesc, float64(counts.DeadLetters))
		gauge(oldestDesc, counts.OldestUnackedAge.Seconds())
		gauge(estimatedDesc, oneIf(counts.Estimated))
		metrics <- prometheus.MustNewConstMetric(ackedDesc, prometheus.CounterValue, float64(counts.Acked), id)
	}
	metrics <- prometheus.MustNewConstMetric(shownDesc, prometheus.GaugeValue, float64(len(c.counts)))
	metrics <- prometheus.MustNewConstMetric(truncatedDesc, prometheus.GaugeValue, oneIf(c.truncated))
	metrics <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, age.Seconds())
	metrics <- prometheus.MustNewConstMetric(errorsDesc, prometheus.CounterValue, float64(c.errors))
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (c *subscriptionCollector) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.refreshed) >= collectInterval {
		c.refreshed = now
		return true
	}
	return false
}

// refresh asks which subscriptions there are, and counts those whose turn it is.
func (c *subscriptionCollector) refresh() {
	began := time.Now()
	subscriptions, complete, err := c.list()
	if err != nil {
		c.failed("list of subscriptions for metrics failed", err)
		return
	}
	for _, id := range c.turn(subscriptions, !complete) {
		if time.Since(began) > collectBudget {
			return
		}
		err := c.count(id)
		if err != nil && !errors.Is(err, fastpubsub.ErrNotFound) { // deleted meanwhile
			c.failed("count of a subscription's messages for metrics failed", err)
			return
		}
	}
}

func (c *subscriptionCollector) failed(text string, err error) {
	c.mu.Lock()
	c.errors++
	c.mu.Unlock()
	c.logger.LogAttrs(context.Background(), slog.LevelWarn, text, slog.Any("error", err))
}

// list returns the ids of subscriptions, and whether that are all. It says which ones, and which topics, exist.
func (c *subscriptionCollector) list() (ids []string, complete bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	since := time.Now()
	subscriptions, err := c.broker.ListSubscriptions(ctx, fastpubsub.ListOptions{Limit: maxLabels})
	if err != nil {
		return nil, false, err
	}
	topics, err := c.broker.ListTopics(ctx, fastpubsub.ListOptions{Limit: maxLabels})
	if err != nil {
		return nil, false, err
	}
	ids = idsOf(subscriptions, func(s fastpubsub.Subscription) string { return s.ID })
	complete = len(ids) < maxLabels
	topicIDs, subscriptionIDs := idsOf(topics, func(t fastpubsub.Topic) string { return t.ID }), ids
	if !complete {
		subscriptionIDs = nil
	}
	if len(topicIDs) >= maxLabels {
		topicIDs = nil
	}
	c.pruned(topicIDs, subscriptionIDs, since)
	return ids, complete, nil
}

// idsOf returns sorted ids, not nil.
func idsOf[T any](all []T, id func(T) string) []string {
	ids := make([]string, len(all))
	for i, v := range all {
		ids[i] = id(v)
	}
	slices.Sort(ids)
	return ids
}

// turn forgets the subscriptions that are not there any more, and returns those that were not tried for longest.
func (c *subscriptionCollector) turn(ids []string, truncated bool) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.truncated = truncated
	for id := range c.counts {
		if _, exists := slices.BinarySearch(ids, id); !exists {
			delete(c.counts, id)
		}
	}
	for _, id := range ids {
		if c.counts[id] == nil {
			c.counts[id] = &subscriptionCounts{}
		}
	}
	slices.SortStableFunc(ids, func(x, y string) int {
		return c.counts[x].tried.Compare(c.counts[y].tried)
	})
	return ids[:min(len(ids), collectAtMost)]
}

func (c *subscriptionCollector) count(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	counted, err := c.broker.Metrics(ctx, id)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	counts := c.counts[id]
	counts.tried = now
	if err == nil {
		counts.Metrics, counts.at = counted, now
	}
	return err
}
