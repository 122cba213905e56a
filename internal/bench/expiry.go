package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// expiryPhase is many leases, of one message each, that run out at the same moment, while consumers are at work on fresh
// messages of the same subscription. It measures what these notice of it.
type expiryPhase struct {
	leases       int
	publishBatch int

	supply    *batches
	consumers consumers
}

const (
	// expiryInterval is how often a call publishes fresh messages.
	expiryInterval = 20 * time.Millisecond
	// emptyPause is for a consumer that got nothing.
	emptyPause = 2 * time.Millisecond
	// expiryLimit is when what has not been redelivered is given up.
	expiryLimit = 4 * time.Minute
)

func (p *expiryPhase) title() string { return fmt.Sprintf("expiry of %d leases", p.leases) }

func (p *expiryPhase) engine() bool { return true }

func (p *expiryPhase) prepare(ctx context.Context, e *env) error {
	if err := e.createTopics(ctx, 1, fastpubsub.Filter{}); err != nil {
		return err
	}
	if err := e.warmUp(ctx); err != nil {
		return err
	}
	if err := e.fill(ctx, p.leases, p.publishBatch, 0); err != nil {
		return err
	}
	e.next.Store(int64(p.leases)) // the workers have gone on
	for taken := 0; taken < p.leases; {
		msgs, err := e.broker.Consume(ctx, subscription(0), fastpubsub.ConsumeOptions{
			Consumer: "holder", Max: 1000, AckDeadline: ackDeadline, Single: true,
		})
		if err != nil && !errors.Is(err, fastpubsub.ErrBusy) {
			return err
		}
		if err == nil && len(msgs) == 0 {
			return fmt.Errorf("%w: of %d messages only %d could be taken", ErrMismatch, p.leases, taken)
		}
		taken += len(msgs)
	}
	p.supply = newBatches(seed, 0, 1, e.config.Batch, e.config.PayloadBytes)
	p.consumers = make(consumers, e.config.Consumers)
	for i := range p.consumers {
		c := newConsumer(e, i, subscription(0))
		c.ackAt = p.ackAt
		c.everyCall = true
		p.consumers[i] = c
	}
	return nil
}

// ackAt is 2 for what the holder has had.
func (p *expiryPhase) ackAt(number int64) int {
	if number < int64(p.leases) {
		return 2
	}
	return 1
}

// expire gives all leases one deadline. It takes a while with many, so the deadline is that much later. It returns how many
// they were and how long until then, by the database's clock; that is half a second or more.
func (p *expiryPhase) expire(ctx context.Context, e *env) (leases int, until time.Duration, err error) {
	schema := e.quotedSchema()
	sql := `
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() + make_interval(secs => $2) AS at
), changed AS (
    UPDATE ` + schema + `.leases l SET deadline = moment.at
    FROM moment, ` + schema + `.subscriptions s
    WHERE s.id = $1 AND l.sub = s.num
    RETURNING l.sub
)
SELECT count(*), extract(epoch FROM (SELECT at FROM moment) - clock_timestamp())::float8 FROM changed`
	lead := 500*time.Millisecond + time.Duration(p.leases)*30*time.Microsecond
	var left float64
	err = e.control.QueryRow(ctx, sql, subscription(0), lead.Seconds()).Scan(&leases, &left)
	return leases, time.Duration(left * float64(time.Second)), err
}

func (p *expiryPhase) run(ctx context.Context, e *env) (tally, error) {
	leases, until, err := p.expire(ctx, e)
	if err != nil {
		return tally{}, err
	}
	if leases != p.leases {
		return tally{}, fmt.Errorf("%w: %d leases of %d messages", ErrMismatch, leases, p.leases)
	}
	start := time.Now()
	moment := start.Add(until)
	var redelivered atomic.Int64
	err = workers(ctx, 1+len(p.consumers), func(ctx context.Context, i int) error {
		if i == 0 {
			return p.publish(ctx, e, &redelivered)
		}
		c := p.consumers[i-1]
		c.from = moment
		for redelivered.Load() < int64(p.leases) {
			before := c.again
			n, err := c.call(ctx, 0)
			if err != nil {
				return err
			}
			redelivered.Add(c.again - before)
			if time.Since(moment) > expiryLimit {
				return fmt.Errorf("%w: only %d of %d messages were redelivered", ErrMismatch, redelivered.Load(), p.leases)
			}
			if n == 0 {
				if err := pause(ctx, time.After(emptyPause)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return tally{}, err
	}
	t := p.consumers.tally(moment)
	fresh := t.messages - int64(p.leases)
	t.messages = int64(p.leases)
	t.metrics = append(t.metrics,
		Metric{untilRedelivered, seconds, t.elapsed.Seconds()},
		Metric{"fresh messages", perSecond, divide(float64(fresh), (t.elapsed + until).Seconds())})
	return t, nil
}

// publish publishes fresh messages until all others have been redelivered.
func (p *expiryPhase) publish(ctx context.Context, e *env, redelivered *atomic.Int64) error {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for redelivered.Load() < int64(p.leases) {
		batch := e.config.Batch
		first := e.next.Add(int64(batch)) - int64(batch)
		if _, err := e.broker.Publish(ctx, topic, p.supply.take(first, batch, 0, 0)...); err != nil {
			return err
		}
		if err := pause(ctx, tick.C); err != nil {
			return err
		}
	}
	return nil
}

// check consumes what was left and compares.
func (p *expiryPhase) check(ctx context.Context, e *env) error {
	if err := p.consumers.rest(ctx); err != nil {
		return err
	}
	return verify(p.consumers.records(), e.next.Load(), everyNumber)
}
