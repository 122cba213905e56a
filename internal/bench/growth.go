package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// GrowthWorkloads are the names of what can be measured while one thing grows and all else stays as it is: does a message cost more
// when there is more of it?
var GrowthWorkloads = []string{"growth-backlog", "growth-dead-letters", "growth-topics", "growth-subscriptions", "growth-elsewhere",
	"growth-fanout", "growth-payload", "growth-connections"}

// A growth is a series of sizes.
type growth struct {
	of    string // what grows
	sizes []int
	phase func(size int) *growthPhase
}

// Full sizes, and what the phases have beside them.
const (
	growthPayloadBatch = 10 // a call of the largest payloads must fit into what one publish may carry
	growthServerSide   = 20 // connections of PgBouncer to the server
	subscriptionsEach  = 10 // of a topic in growth-subscriptions and growth-elsewhere
)

func (c *Config) growth(workload string) (growth, bool) {
	with := func(change func(p *growthPhase, size int)) func(int) *growthPhase {
		return func(size int) *growthPhase {
			p := &growthPhase{topics: 1, subscriptions: 1, payload: c.PayloadBytes, batch: c.Batch, workers: c.Consumers}
			change(p, size)
			return p
		}
	}
	switch workload {
	case "growth-backlog":
		return growth{"messages that wait", []int{10_000, 100_000, 1_000_000, 10_000_000},
			with(func(p *growthPhase, size int) { p.backlog = size })}, true
	case "growth-dead-letters":
		return growth{"dead letters", []int{1_000, 30_000, 1_000_000}, with(func(p *growthPhase, size int) { p.dead = size })}, true
	case "growth-topics":
		return growth{"topics", []int{10, 300, 10_000}, with(func(p *growthPhase, size int) { p.topics = size })}, true
	case "growth-subscriptions":
		return growth{"subscriptions, ten a topic", []int{10, 300, 10_000}, with(func(p *growthPhase, size int) {
			p.topics, p.subscriptions = max(size/subscriptionsEach, 1), subscriptionsEach
		})}, true
	case "growth-elsewhere":
		return growth{"subscriptions, ten of them used", []int{10, 300, 10_000}, with(func(p *growthPhase, size int) {
			p.topics, p.subscriptions, p.used = max(size/subscriptionsEach, 1), subscriptionsEach, 1
		})}, true
	case "growth-fanout":
		return growth{"subscriptions of one topic", []int{1, 30, 1_000}, with(func(p *growthPhase, size int) { p.subscriptions = size })}, true
	case "growth-payload":
		return growth{"bytes a payload", []int{200, 10_000, 100_000, 1_000_000}, with(func(p *growthPhase, size int) {
			p.payload, p.batch = size, min(c.Batch, growthPayloadBatch)
		})}, true
	case "growth-connections":
		return growth{"connections to PgBouncer, which has 20", []int{8, 60, 500}, with(func(p *growthPhase, size int) {
			p.workers, p.pooled = size, true
		})}, true
	}
	return growth{}, false
}

// scaled are the sizes of a series: a share of all but the first.
func (g growth) scaled(scale float64) []int {
	var sizes []int
	for _, size := range g.sizes {
		sizes = append(sizes, max(g.sizes[0], int(float64(size)*scale)))
	}
	return slices.Compact(sizes)
}

// growthPlan is the phases of a workload that is a growth.
func (c *Config) growthPlan(workload string) []plannedPhase {
	g, ok := c.growth(workload)
	if !ok {
		return nil
	}
	var phases []plannedPhase
	for _, size := range g.scaled(c.GrowthScale) {
		p := g.phase(size)
		p.of, p.size = g.of, size
		phases = append(phases, plannedPhase{phase: p})
	}
	return phases
}

// growthPhase is workers who publish a batch, take as many messages and ack them, again and again, beside so much of something.
type growthPhase struct {
	of            string
	size          int
	topics        int
	subscriptions int // of each topic
	used          int // topics that messages go through; 0 is all
	backlog, dead int // messages of the first subscription
	payload       int // bytes
	batch         int
	workers       int
	pooled        bool // through PgBouncer

	broker  *fastpubsub.Broker
	turn    atomic.Int64 // the number of the next cycle, which says whose turn it is
	metrics []Metric     // of what was measured once
}

func (p *growthPhase) title() string { return grouped(int64(p.size)) + " " + p.of }

func (p *growthPhase) engine() bool { return true }

func growthTopic(i int) string           { return "topic-" + strconv.Itoa(i) }
func growthSubscription(i, j int) string { return growthTopic(i) + "-" + strconv.Itoa(j) }

func (p *growthPhase) prepare(ctx context.Context, e *env) error {
	p.broker = e.broker
	if err := e.createTopics(ctx, 0, fastpubsub.Filter{}); err != nil { // those for warming up
		return err
	}
	if err := p.create(ctx, e); err != nil {
		return err
	}
	if err := e.warmUp(ctx); err != nil {
		return err
	}
	if err := p.fill(ctx, e, p.dead, p.bury); err != nil {
		return err
	}
	if err := p.fill(ctx, e, p.backlog, nil); err != nil {
		return err
	}
	if err := p.measureOnce(ctx, e); err != nil {
		return err
	}
	if p.pooled {
		return p.pool(ctx, e)
	}
	return nil
}

// create makes the topics and their subscriptions.
func (p *growthPhase) create(ctx context.Context, e *env) error {
	var next atomic.Int64
	return workers(ctx, e.config.Publishers, func(ctx context.Context, _ int) error {
		for {
			i := int(next.Add(1) - 1)
			if i >= p.topics {
				return nil
			}
			if _, err := e.broker.CreateTopic(ctx, growthTopic(i)); err != nil {
				return err
			}
			for j := range p.subscriptions {
				sub := fastpubsub.Subscription{ID: growthSubscription(i, j), TopicID: growthTopic(i),
					SubscriptionSettings: fastpubsub.SubscriptionSettings{AckDeadline: ackDeadline}}
				if _, err := e.broker.CreateSubscription(ctx, sub); err != nil {
					return err
				}
			}
		}
	})
}

// fill publishes messages for the first subscription, in calls of a thousand where they fit, and does after with each worker's
// share.
func (p *growthPhase) fill(ctx context.Context, e *env, messages int, after func(ctx context.Context, e *env, published int) error) error {
	batch := min(1000, max(supplyBytes/e.config.Publishers/p.payload, 1))
	var next atomic.Int64
	return workers(ctx, e.config.Publishers, func(ctx context.Context, i int) error {
		supply := newBatches(seed, i, e.config.Publishers, batch, p.payload)
		for {
			first := next.Add(int64(batch)) - int64(batch)
			n := min(batch, messages-int(first))
			if n <= 0 {
				return nil
			}
			if _, err := e.broker.Publish(ctx, growthTopic(0), supply.take(first, n, 0, 0)...); err != nil {
				return err
			}
			if after == nil {
				continue
			}
			if err := after(ctx, e, n); err != nil {
				return err
			}
		}
	})
}

// bury makes as many messages dead letters as were published.
func (p *growthPhase) bury(ctx context.Context, e *env, published int) error {
	for published > 0 {
		msgs, err := e.broker.Consume(ctx, growthSubscription(0, 0), fastpubsub.ConsumeOptions{Consumer: "undertaker", Max: min(published, 1000)})
		if errors.Is(err, fastpubsub.ErrBusy) {
			continue
		}
		if err != nil {
			return err
		}
		deliveries := make([]fastpubsub.Delivery, len(msgs))
		for i, m := range msgs {
			deliveries[i] = m.Delivery
		}
		n, err := e.broker.Nack(ctx, growthSubscription(0, 0), deliveries, fastpubsub.NackOptions{DeadLetter: true, Error: "for the benchmark"})
		if err != nil {
			return err
		}
		published -= n
	}
	return nil
}

// Names of what measureOnce takes the time of.
const (
	onceMetrics     = "metrics of a subscription"
	onceMaintenance = "a pass of maintenance"
)

// measureOnce takes the time of what is not done for each message.
func (p *growthPhase) measureOnce(ctx context.Context, e *env) error {
	p.metrics = nil
	for _, m := range []struct {
		name string
		do   func() error
	}{
		{onceMetrics, func() error {
			_, err := e.broker.Metrics(ctx, growthSubscription(0, 0))
			return err
		}},
		{onceMaintenance, func() error {
			_, err := e.broker.CleanupStuck(ctx)
			if err == nil {
				_, err = e.broker.CleanupAcked(ctx, time.Hour)
			}
			return err
		}},
		{"a page of dead letters", func() error {
			_, err := e.broker.DeadLetters(ctx, growthSubscription(0, 0), fastpubsub.ListOptions{Limit: 100})
			return err
		}},
	} {
		for range 2 { // the first warms up
			start := time.Now()
			if err := m.do(); err != nil {
				return err
			}
			took := Metric{m.name, seconds, time.Since(start).Seconds()}
			if n := len(p.metrics); n > 0 && p.metrics[n-1].Name == m.name {
				p.metrics[n-1] = took
			} else {
				p.metrics = append(p.metrics, took)
			}
		}
	}
	return nil
}

// pool gives each worker a connection to a PgBouncer in transaction mode.
func (p *growthPhase) pool(ctx context.Context, e *env) error {
	address, pgBouncer, err := pgserver.StartPgBouncer(ctx, e.config.Database.ConnString(), "transaction", growthServerSide)
	if err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return errors.Join(err, stopCompanion(pgBouncer))
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.MaxConns = int32(p.workers)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return errors.Join(err, stopCompanion(pgBouncer))
	}
	e.closers = append(e.closers, func() error {
		pool.Close()
		return stopCompanion(pgBouncer)
	})
	if p.broker, err = fastpubsub.New(pool, fastpubsub.Config{Schema: e.schema}); err != nil {
		return err
	}
	// All of them are open before the clock runs.
	return workers(ctx, p.workers, func(ctx context.Context, _ int) error { return p.broker.Check(ctx) })
}

func stopCompanion(c *pgserver.Companion) error {
	_, err := c.Stop()
	return err
}

// growthWorker is what one worker has done.
type growthWorker struct {
	supply                      *batches
	messages, busy              int64
	publish, consume, ack, call latencies
}

func (p *growthPhase) run(ctx context.Context, e *env) (tally, error) {
	all := make([]*growthWorker, p.workers)
	for i := range all {
		all[i] = &growthWorker{supply: newBatches(seed, i, p.workers, p.batch, p.payload),
			publish: newLatencies(), consume: newLatencies(), ack: newLatencies(), call: newLatencies()}
	}
	p.turn.Store(0)
	start := time.Now()
	err := workers(ctx, p.workers, func(ctx context.Context, i int) error {
		for time.Since(start) < e.config.Duration {
			if err := p.cycle(ctx, all[i]); err != nil {
				return err
			}
		}
		return nil
	})
	t := tally{elapsed: time.Since(start)}
	sum := all[0]
	for i, w := range all {
		t.messages += w.messages
		if i > 0 {
			sum.busy += w.busy
			sum.publish.merge(w.publish)
			sum.consume.merge(w.consume)
			sum.ack.merge(w.ack)
			sum.call.merge(w.call)
		}
	}
	t.metrics = append(t.metrics, sum.call.metrics("call")...)
	t.metrics = append(t.metrics, sum.publish.metrics("publish")...)
	t.metrics = append(t.metrics, sum.consume.metrics("consume")...)
	t.metrics = append(t.metrics, sum.ack.metrics("ack")...)
	t.metrics = append(t.metrics, Metric{"answers that it is busy", count, float64(sum.busy)})
	t.metrics = append(t.metrics, p.metrics...)
	if err == nil && t.messages == 0 {
		err = fmt.Errorf("no message was consumed within %v", e.config.Duration)
	}
	return t, err
}

// cycle takes and acks a batch from the subscription whose turn it is. The first of a topic publishes before that: for each
// subscription as many messages come as are taken.
func (p *growthPhase) cycle(ctx context.Context, w *growthWorker) error {
	turn := int(p.turn.Add(1)-1) % (cmp.Or(p.used, p.topics) * p.subscriptions)
	topic, sub := turn/p.subscriptions, growthSubscription(turn/p.subscriptions, turn%p.subscriptions)
	if turn%p.subscriptions == 0 {
		msgs := w.supply.take(0, p.batch, 0, 0)
		start := time.Now()
		if _, err := p.broker.Publish(ctx, growthTopic(topic), msgs...); err != nil {
			return err
		}
		w.count(w.publish, start)
	}
	start := time.Now()
	msgs, err := p.broker.Consume(ctx, sub, fastpubsub.ConsumeOptions{Consumer: "worker", Max: p.batch})
	if errors.Is(err, fastpubsub.ErrBusy) {
		w.busy++
		return nil
	}
	if err != nil {
		return err
	}
	w.count(w.consume, start)
	if len(msgs) == 0 { // who publishes is about to
		return nil
	}
	ids := make([]fastpubsub.ID, len(msgs))
	for i, m := range msgs {
		if err := checkPayload(m.Payload, p.payload); err != nil {
			return err
		}
		ids[i] = m.ID
	}
	start = time.Now()
	n, err := p.broker.Ack(ctx, sub, ids)
	if err != nil {
		return err
	}
	if n != len(ids) {
		return fmt.Errorf("%w: of %d messages consumed, %d could be acked", ErrMismatch, len(ids), n)
	}
	w.count(w.ack, start)
	w.messages += int64(n)
	return nil
}

func (w *growthWorker) count(l latencies, start time.Time) {
	took := time.Since(start)
	l.record(took, 1)
	w.call.record(took, 1)
}

// check says whether what was there is still there: the backlog and the dead letters.
func (p *growthPhase) check(ctx context.Context, e *env) error {
	m, err := e.broker.Metrics(ctx, growthSubscription(0, 0))
	if err != nil {
		return err
	}
	if int(m.DeadLetters) != p.dead || int(m.Available) < p.backlog-p.workers*p.batch {
		return fmt.Errorf("%w: %d dead letters and a backlog of %d, not %d and about %d", ErrMismatch, m.DeadLetters, m.Available, p.dead, p.backlog)
	}
	return nil
}
