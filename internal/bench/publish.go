package bench

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

const (
	topic     = "measured"
	warmTopic = "warm" // and its subscription; drained when preparing ends
	seed      = 1
)

// ackDeadline is longer than anything here takes: nothing is delivered twice because it expired.
const ackDeadline = time.Hour

func subscription(i int) string { return topic + "-" + strconv.Itoa(i) }

// createTopics makes the topic and its subscriptions, and the ones for warming up.
func (e *env) createTopics(ctx context.Context, subscriptions int, filter fastpubsub.Filter) error {
	for _, id := range []string{topic, warmTopic} {
		if _, err := e.broker.CreateTopic(ctx, id); err != nil {
			return err
		}
	}
	settings := fastpubsub.SubscriptionSettings{AckDeadline: ackDeadline}
	subs := []fastpubsub.Subscription{{ID: warmTopic, TopicID: warmTopic, SubscriptionSettings: settings}}
	for i := range subscriptions {
		subs = append(subs, fastpubsub.Subscription{ID: subscription(i), TopicID: topic, Filter: filter, SubscriptionSettings: settings})
	}
	for _, sub := range subs {
		if _, err := e.broker.CreateSubscription(ctx, sub); err != nil {
			return err
		}
	}
	return nil
}

// warmCalls make each connection prepare its statements and the server load what it needs.
const warmCalls = 10

// warmUp publishes to a topic that is not measured and drains it, with as many connections as will work later.
func (e *env) warmUp(ctx context.Context) error {
	c := &e.config
	err := workers(ctx, c.Publishers, func(ctx context.Context, i int) error {
		supply := newBatches(seed, i, c.Publishers, c.Batch, c.PayloadBytes)
		for range warmCalls {
			if _, err := e.broker.Publish(ctx, warmTopic, supply.take(0, c.Batch, 0, 0)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return workers(ctx, c.Consumers, func(ctx context.Context, i int) error {
		w := newConsumer(e, i, warmTopic)
		for {
			n, err := w.call(ctx, 0)
			if n == 0 || err != nil {
				return err
			}
		}
	})
}

// fill publishes messages at full speed, so many a call, of which a share matches the filter.
func (e *env) fill(ctx context.Context, messages, batch int, share float64) error {
	supply := e.supplies(e.config.Publishers, batch)
	return workers(ctx, e.config.Publishers, func(ctx context.Context, i int) error {
		for {
			first := e.next.Add(int64(batch)) - int64(batch)
			n := min(batch, messages-int(first))
			if n <= 0 {
				return nil
			}
			if _, err := e.broker.Publish(ctx, topic, supply[i].take(first, n, share, 0)...); err != nil {
				return err
			}
		}
	})
}

// publishPhase is publishers at full speed, with so many subscriptions.
type publishPhase struct {
	subscriptions int
	supply        []*batches
}

func (p *publishPhase) title() string {
	return fmt.Sprintf("publish, %d subscription%s", p.subscriptions, plural(p.subscriptions))
}

func (p *publishPhase) engine() bool { return true }

func (p *publishPhase) prepare(ctx context.Context, e *env) error {
	if err := e.createTopics(ctx, p.subscriptions, fastpubsub.Filter{}); err != nil {
		return err
	}
	p.supply = e.supplies(e.config.Publishers, e.config.Batch)
	return e.warmUp(ctx)
}

func (p *publishPhase) run(ctx context.Context, e *env) (tally, error) {
	insert := func(ctx context.Context, i int) error {
		first := e.next.Add(int64(e.config.Batch)) - int64(e.config.Batch)
		_, err := e.broker.Publish(ctx, topic, p.supply[i].take(first, e.config.Batch, 0, 0)...)
		return err
	}
	return e.atFullSpeed(ctx, e.config.Publishers, e.config.Batch, insert)
}

func (p *publishPhase) check(context.Context, *env) error { return nil }

// checkLog counts what the log has of the topic that is measured.
func (e *env) checkLog(ctx context.Context) error {
	var n int64
	sql := `SELECT coalesce(sum(m.n), 0) FROM ` + e.quotedSchema() + `.messages m JOIN ` + e.quotedSchema() + `.topics t
	        ON t.num = m.topic_num WHERE t.id = $1`
	if err := e.pool.QueryRow(ctx, sql, topic).Scan(&n); err != nil {
		return err
	}
	if n != e.next.Load() {
		return fmt.Errorf("%w: the log has %d messages, not %d", ErrMismatch, n, e.next.Load())
	}
	return nil
}

// supplies returns a supply for each publisher.
func (e *env) supplies(publishers, batch int) []*batches {
	all := make([]*batches, publishers)
	for i := range all {
		all[i] = newBatches(seed, i, publishers, batch, e.config.PayloadBytes)
	}
	return all
}

// fullSpeedLimit bounds phases that only add to what is stored.
const fullSpeedLimit = time.Minute

// atFullSpeed has n workers make calls of batch messages for the duration. Calls under way at its end are waited for and
// counted, with the time they took.
func (e *env) atFullSpeed(ctx context.Context, n, batch int, call func(ctx context.Context, i int) error) (tally, error) {
	latency := make([]latencies, n)
	calls := make([]int64, n)
	for i := range latency {
		latency[i] = newLatencies()
	}
	duration := min(e.config.Duration, fullSpeedLimit)
	start := time.Now()
	err := workers(ctx, n, func(ctx context.Context, i int) error {
		for now := start; now.Sub(start) < duration; {
			if err := call(ctx, i); err != nil {
				return err
			}
			end := time.Now()
			latency[i].record(end.Sub(now), 1)
			calls[i]++
			now = end
		}
		return nil
	})
	elapsed := time.Since(start)
	var total int64
	for i := range n {
		total += calls[i]
		if i > 0 {
			latency[0].merge(latency[i])
		}
	}
	metrics := append([]Metric{{"calls", perSecond, float64(total) / elapsed.Seconds()}}, latency[0].metrics("call")...)
	return tally{total * int64(batch), elapsed, metrics}, err
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}
