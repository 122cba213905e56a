package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// expiryPhase is many leases, of one message each, that run out within a moment, while consumers are at work on fresh
// messages of the same subscription. It measures what these notice of it. What the server does a message includes the
// statement that moves the deadlines.
type expiryPhase struct {
	leases       int
	publishBatch int
	acked        bool // before they run out, so that nothing has to be redelivered

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

func (p *expiryPhase) title() string {
	if p.acked {
		return fmt.Sprintf("expiry of %d leases, all acked", p.leases)
	}
	return fmt.Sprintf("expiry of %d leases", p.leases)
}

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
		if p.acked {
			if err := p.ack(ctx, e, msgs); err != nil {
				return err
			}
		}
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

func (p *expiryPhase) ack(ctx context.Context, e *env, msgs []fastpubsub.Message) error {
	ids := make([]fastpubsub.ID, len(msgs))
	for i, msg := range msgs {
		ids[i] = msg.ID
	}
	n, err := e.broker.Ack(ctx, subscription(0), ids)
	if err == nil && n != len(ids) {
		err = fmt.Errorf("%w: of %d messages consumed, %d could be acked", ErrMismatch, len(ids), n)
	}
	return err
}

// ackAt is 2 for what the holder has had.
func (p *expiryPhase) ackAt(number int64) int {
	if p.held(number) {
		return 2
	}
	return 1
}

// held says whether the holder has left a message for the others.
func (p *expiryPhase) held(number int64) bool { return number < int64(p.leases) && !p.acked }

// expire moves the deadlines of all leases to the same moment: a microsecond lies between any two that were different, and
// those that were one remain so. It takes a while with many, so the moment is that much later. It returns how many they
// were, the moment by the database's clock, and how long until then; that is half a second or more.
func (p *expiryPhase) expire(ctx context.Context, e *env) (leases int, at time.Time, until time.Duration, err error) {
	schema := e.quotedSchema()
	sql := `
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() + make_interval(secs => $2) AS at
), sorted AS (
    SELECT l.sub, l.kind, l.first_xid, l.first_seq, l.slot, dense_rank() OVER (ORDER BY l.deadline) AS rank
    FROM ` + schema + `.leases l JOIN ` + schema + `.subscriptions s ON s.num = l.sub
    WHERE s.id = $1
), changed AS (
    UPDATE ` + schema + `.leases l SET deadline = moment.at + s.rank * interval '1 us'
    FROM moment, sorted s
    WHERE (l.sub, l.kind, l.first_xid, l.first_seq, l.slot) = (s.sub, s.kind, s.first_xid, s.first_seq, s.slot)
    RETURNING l.deadline
)
SELECT count(*), max(deadline), extract(epoch FROM (SELECT at FROM moment) - clock_timestamp())::float8 FROM changed`
	lead := 500*time.Millisecond + time.Duration(p.leases)*30*time.Microsecond
	var left float64
	err = e.control.QueryRow(ctx, sql, subscription(0), lead.Seconds()).Scan(&leases, &at, &left)
	return leases, at, time.Duration(left * float64(time.Second)), err
}

func (p *expiryPhase) run(ctx context.Context, e *env) (tally, error) {
	leases, at, until, err := p.expire(ctx, e)
	if err != nil {
		return tally{}, err
	}
	if leases != p.leases {
		return tally{}, fmt.Errorf("%w: %d leases of %d messages", ErrMismatch, leases, p.leases)
	}
	start := time.Now()
	moment := start.Add(until)
	var done atomic.Bool
	var redelivered atomic.Int64
	err = workers(ctx, 1+len(p.consumers), func(ctx context.Context, i int) error {
		if i == 0 {
			return p.publish(ctx, e, at, &done)
		}
		c := p.consumers[i-1]
		c.from = moment
		for !done.Load() {
			before := c.again
			n, err := c.call(ctx, 0)
			if err != nil {
				return err
			}
			if redelivered.Add(c.again-before) == int64(p.leases) && !p.acked {
				done.Store(true)
			}
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
	t := p.consumers.tally(start)
	t.elapsed -= until
	fresh := t.messages - redelivered.Load()
	t.messages = int64(p.leases)
	name := untilRedelivered
	if p.acked {
		name = untilSwept
		t.elapsed = time.Since(moment) // the last ack may have come before
	}
	t.metrics = append(t.metrics,
		Metric{name, seconds, t.elapsed.Seconds()},
		Metric{"fresh messages", perSecond, divide(float64(fresh), (t.elapsed + until).Seconds())})
	return t, nil
}

// publish publishes fresh messages until the phase is done, which it finds out itself when there is nothing to redeliver:
// when the subscription has left the deadlines behind.
func (p *expiryPhase) publish(ctx context.Context, e *env, at time.Time, done *atomic.Bool) error {
	schema := e.quotedSchema()
	sql := `
SELECT c.swept_to >= $2 FROM ` + schema + `.subscriptions s, ` + schema + `.newest_cursor(s.num) c WHERE s.id = $1`
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for !done.Load() {
		batch := e.config.Batch
		first := e.next.Add(int64(batch)) - int64(batch)
		if _, err := e.broker.Publish(ctx, topic, p.supply.take(first, batch, 0, 0)...); err != nil {
			return err
		}
		if err := pause(ctx, tick.C); err != nil {
			return err
		}
		if p.acked {
			var swept bool
			if err := e.control.QueryRow(ctx, sql, subscription(0), at).Scan(&swept); err != nil {
				return err
			}
			if swept {
				done.Store(true)
			}
		}
	}
	return nil
}

// check consumes what was left and compares.
func (p *expiryPhase) check(ctx context.Context, e *env) error {
	if err := p.consumers.rest(ctx); err != nil {
		return err
	}
	wanted := func(number int64) bool { return p.held(number) || number >= int64(p.leases) }
	return verify(p.consumers.records(), e.next.Load(), wanted)
}
