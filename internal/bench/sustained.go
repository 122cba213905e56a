package bench

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// sustainedPhase is publishers and consumers at the same time.
type sustainedPhase struct {
	supply    []*batches
	consumers consumers
	consumed  atomic.Int64
}

func (p *sustainedPhase) title() string { return "sustained" }

func (p *sustainedPhase) engine() bool { return true }

func (p *sustainedPhase) prepare(ctx context.Context, e *env) error {
	if err := e.createTopics(ctx, 1, fastpubsub.Filter{}); err != nil {
		return err
	}
	p.supply = e.supplies(e.config.Publishers, e.config.Batch)
	p.consumers = make(consumers, e.config.Consumers)
	for i := range p.consumers {
		p.consumers[i] = newConsumer(e, i, subscription(0))
	}
	return e.warmUp(ctx)
}

// A publisher notes what it published, and when the call returned: then it is committed.
type publisher struct {
	latency   latencies
	committed []stretch
	rate      quarters
}

// longestWait bounds how long a consumer waits for messages at a time.
const longestWait = time.Second

func (p *sustainedPhase) run(ctx context.Context, e *env) (tally, error) {
	c := &e.config
	publishers := make([]publisher, c.Publishers)
	consumed := make([]quarters, c.Consumers)
	var freed fastpubsub.Freed
	var looks []look
	p.consumed.Store(0)
	start := time.Now()
	err := workers(ctx, c.Publishers+c.Consumers+2, func(ctx context.Context, i int) error {
		switch i - c.Publishers - c.Consumers {
		case 0:
			return p.maintain(ctx, e, start, &freed)
		case 1:
			var err error
			looks, err = p.look(ctx, e, start)
			return err
		}
		if i < c.Publishers {
			publishers[i].latency = newLatencies()
			return p.publish(ctx, e, start, i, &publishers[i])
		}
		i -= c.Publishers
		for {
			left := c.Duration - time.Since(start)
			if left <= 0 {
				return nil
			}
			n, err := p.consumers[i].next(ctx, min(left, longestWait))
			if err != nil {
				return err
			}
			p.consumed.Add(int64(n))
			consumed[i].add(time.Since(start), c.Duration, int64(n))
		}
	})
	if err != nil {
		return tally{}, err
	}

	t := p.consumers.tally(start)
	t.elapsed = time.Since(start)
	latency, age := newLatencies(), newLatencies()
	var in, out quarters
	var committed []stretch
	for i := range publishers {
		latency.merge(publishers[i].latency)
		in.merge(publishers[i].rate)
		committed = append(committed, publishers[i].committed...)
	}
	for i, c := range p.consumers {
		age.merge(c.age)
		out.merge(consumed[i])
	}
	published := e.next.Load()
	t.metrics = append(t.metrics, Metric{"published", perSecond, float64(published) / t.elapsed.Seconds()})
	t.metrics = append(t.metrics, latency.metrics("publish")...)
	t.metrics = append(t.metrics, age.metrics("from send to consumed")...)
	t.metrics = append(t.metrics, delivery(committed, p.consumers.records()).metrics("from commit to consumed")...)
	t.metrics = append(t.metrics, in.metrics("published", c.Duration)...)
	t.metrics = append(t.metrics, out.metrics("consumed", c.Duration)...)
	t.metrics = append(t.metrics, lookMetrics(looks)...)
	t.metrics = append(t.metrics, Metric{"backlog at the end", count, float64(published - t.messages)})
	if c.Maintain > 0 {
		t.metrics = append(t.metrics,
			Metric{"slots emptied", count, float64(freed.Slots)},
			Metric{"messages spilled", count, float64(freed.Spilled)},
			Metric{"space given back a message", bytesUnit, divide(float64(freed.Bytes), float64(published))})
	}
	return t, nil
}

// A look is what there is at the end of a quarter of the time, and at its start.
type look struct {
	bytes     int64 // of all tables
	serverCPU time.Duration
	consumed  int64
}

const readSchemaBytes = `
SELECT sum(pg_catalog.pg_total_relation_size(oid))::bigint FROM pg_catalog.pg_class
WHERE relnamespace = pg_catalog.to_regnamespace($1) AND relkind = 'r'`

func (p *sustainedPhase) look(ctx context.Context, e *env, start time.Time) ([]look, error) {
	var all []look
	for i := range 5 {
		if err := pause(ctx, time.After(time.Until(start.Add(e.config.Duration*time.Duration(i)/4)))); err != nil {
			return nil, err
		}
		l := look{serverCPU: e.postmaster.cpu(), consumed: p.consumed.Load()}
		if err := e.pool.QueryRow(ctx, readSchemaBytes, e.quotedSchema()).Scan(&l.bytes); err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// lookMetrics returns the size after each quarter, and what the server used for a message consumed in it.
func lookMetrics(looks []look) []Metric {
	var sizes, cpu []Metric
	for i, label := range quarterLabels {
		before, after := looks[i], looks[i+1]
		sizes = append(sizes, Metric{"size of all tables after the " + label + " quarter", bytesUnit, float64(after.bytes)})
		if after.serverCPU > before.serverCPU {
			used := (after.serverCPU - before.serverCPU).Seconds()
			cpu = append(cpu, Metric{"server CPU a message consumed in the " + label + " quarter", seconds,
				divide(used, float64(after.consumed-before.consumed))})
		}
	}
	return append(sizes, cpu...)
}

// maintain runs maintenance until the time is over, ten times in the age at which a slot is left.
func (p *sustainedPhase) maintain(ctx context.Context, e *env, start time.Time, freed *fastpubsub.Freed) error {
	c := &e.config
	if c.Maintain == 0 {
		return nil
	}
	broker, err := fastpubsub.New(e.pool, fastpubsub.Config{
		Schema: e.schema, Maintenance: fastpubsub.MaintenanceSettings{Patience: c.Maintain}})
	if err != nil {
		return err
	}
	for time.Since(start) < c.Duration {
		f, err := broker.CleanupAcked(ctx, c.Maintain)
		if err != nil {
			return err
		}
		freed.Slots += f.Slots
		freed.Spilled += f.Spilled
		freed.Bytes += f.Bytes
		if err := pause(ctx, time.After(c.Maintain/10)); err != nil {
			return err
		}
	}
	return nil
}

// publish publishes until the time is over, at a rate if there is one. Then a message's sent time is the time at which
// it was due, so that a server which keeps its publishers waiting does not look fast.
func (p *sustainedPhase) publish(ctx context.Context, e *env, start time.Time, i int, pub *publisher) error {
	c := &e.config
	var interval time.Duration
	if c.Rate > 0 {
		interval = time.Duration(float64(c.Batch*c.Publishers) / float64(c.Rate) * float64(time.Second))
	}
	due := start.Add(interval * time.Duration(i) / time.Duration(c.Publishers)) // not all at once
	for {
		if wait := time.Until(due); interval > 0 && wait > 0 {
			if err := pause(ctx, time.After(min(wait, c.Duration))); err != nil {
				return err
			}
		}
		for c.Backlog > 0 && e.next.Load()-p.consumed.Load() >= int64(c.Backlog) && time.Since(start) < c.Duration {
			if err := pause(ctx, time.After(time.Millisecond)); err != nil {
				return err
			}
		}
		now := time.Now()
		if now.Sub(start) >= c.Duration {
			return nil
		}
		if interval == 0 {
			due = now
		}
		first := e.next.Add(int64(c.Batch)) - int64(c.Batch)
		if _, err := e.broker.Publish(ctx, topic, p.supply[i].take(first, c.Batch, 0, due.UnixNano())...); err != nil {
			return err
		}
		end := time.Now()
		pub.latency.record(end.Sub(now), 1)
		pub.committed = append(pub.committed, stretch{first, first + int64(c.Batch), end.UnixNano()})
		pub.rate.add(end.Sub(start), c.Duration, int64(c.Batch))
		due = due.Add(interval)
	}
}

// delivery counts how long after their publisher knew of the commit messages were consumed; some are consumed before.
func delivery(committed []stretch, records []*record) latencies {
	l := newLatencies()
	slices.SortFunc(committed, func(a, b stretch) int { return cmp.Compare(a.lo, b.lo) })
	for _, r := range records {
		for _, s := range r.stretches {
			i := sort.Search(len(committed), func(i int) bool { return committed[i].hi > s.lo })
			for lo := s.lo; lo < s.hi && i < len(committed); i++ {
				hi := min(s.hi, committed[i].hi)
				l.record(time.Duration(s.at-committed[i].at), hi-lo)
				lo = hi
			}
		}
	}
	return l
}

// check consumes what was left and compares.
func (p *sustainedPhase) check(ctx context.Context, e *env) error {
	published := e.next.Load()
	if err := p.consumers.rest(ctx); err != nil {
		return err
	}
	return verify(p.consumers.records(), published, everyNumber)
}
