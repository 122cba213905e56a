package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// A consumer takes messages from a subscription, acks them and notes what it got. It is used by one goroutine.
type consumer struct {
	e            *env
	name         string
	subscription string
	ids          []fastpubsub.ID       // of one call, to ack
	failed       []fastpubsub.Delivery // and to nack

	// ackAt says at which delivery a message is acked; at those before it is nacked, to be delivered again at once. nil: at
	// the first.
	ackAt func(number int64) int
	// from is when latencies begin to count, everyCall that those of answers count that are empty or say that it is busy.
	from      time.Time
	everyCall bool

	got                *record // what was acked
	consume, ack, nack latencies
	age                latencies // of messages, from their sent time, if they have one
	calls, busy        int64
	messages           int64 // acked
	again              int64 // those of messages that were delivered before
	nacked             int64
	lastAck            time.Time
}

func newConsumer(e *env, i int, subscription string) *consumer {
	return &consumer{
		e: e, name: "consumer-" + strconv.Itoa(i), subscription: subscription, got: new(record),
		ids:     make([]fastpubsub.ID, 0, e.config.Batch),
		consume: newLatencies(), ack: newLatencies(), nack: newLatencies(), age: newLatencies(),
	}
}

// next is a call, and if nothing came of it another that waits for messages.
func (c *consumer) next(ctx context.Context, wait time.Duration) (int, error) {
	n, err := c.call(ctx, 0)
	if n > 0 || err != nil || wait <= 0 {
		return n, err
	}
	return c.call(ctx, wait)
}

// call consumes once, and acks or nacks what came. It returns how many messages that were; 0 too when the subscription was
// busy. How long it took to consume counts if that did not wait for messages.
func (c *consumer) call(ctx context.Context, wait time.Duration) (int, error) {
	start := time.Now()
	msgs, err := c.e.broker.Consume(ctx, c.subscription, fastpubsub.ConsumeOptions{
		Consumer: c.name, Max: c.e.config.Batch, Wait: wait,
	})
	busy := errors.Is(err, fastpubsub.ErrBusy)
	if err != nil && !busy {
		return 0, err
	}
	consumed := time.Now()
	if wait == 0 && (len(msgs) > 0 || c.everyCall) {
		c.count(c.consume, start, consumed)
	}
	if busy {
		c.busy++
	}
	if len(msgs) == 0 {
		return 0, nil
	}
	if err := c.sort(msgs, consumed.UnixNano()); err != nil {
		return 0, err
	}

	if len(c.ids) > 0 {
		before := time.Now()
		n, err := c.e.broker.Ack(ctx, c.subscription, c.ids)
		if err != nil {
			return 0, err
		}
		if n != len(c.ids) {
			return 0, fmt.Errorf("%w: of %d messages consumed, %d could be acked", ErrMismatch, len(c.ids), n)
		}
		c.lastAck = time.Now()
		c.count(c.ack, before, c.lastAck)
		c.messages += int64(n)
	}
	if len(c.failed) > 0 {
		before := time.Now()
		n, err := c.e.broker.Nack(ctx, c.subscription, c.failed, fastpubsub.NackOptions{Immediate: true})
		if err != nil {
			return 0, err
		}
		if n != len(c.failed) {
			return 0, fmt.Errorf("%w: of %d messages consumed, %d could be nacked", ErrMismatch, len(c.failed), n)
		}
		c.count(c.nack, before, time.Now())
		c.nacked += int64(n)
	}
	c.calls++
	return len(msgs), nil
}

// sort notes what came at a time, and fills ids and failed.
func (c *consumer) sort(msgs []fastpubsub.Message, at int64) error {
	c.ids, c.failed = c.ids[:0], c.failed[:0]
	lastSent, same := int64(0), int64(0) // neighbours were mostly sent by one call
	for _, m := range msgs {
		if err := checkPayload(m.Payload, c.e.config.PayloadBytes); err != nil {
			return err
		}
		n, ackAt := number(m.Payload), 1
		if c.ackAt != nil {
			ackAt = c.ackAt(n)
		}
		if m.DeliveryAttempts > ackAt {
			return fmt.Errorf("%w: message %d came for the %dth time", ErrMismatch, n, m.DeliveryAttempts)
		}
		if m.DeliveryAttempts < ackAt {
			c.failed = append(c.failed, m.Delivery)
			continue
		}
		if m.DeliveryAttempts > 1 {
			c.again++
		}
		c.ids = append(c.ids, m.ID)
		c.got.add(n, at)
		if s := sent(m.Payload); s != lastSent {
			c.aged(at-lastSent, same, lastSent)
			lastSent, same = s, 0
		}
		same++
	}
	c.aged(at-lastSent, same, lastSent)
	return nil
}

func (c *consumer) count(l latencies, start, end time.Time) {
	if end.After(c.from) {
		l.record(end.Sub(start), 1)
	}
}

func (c *consumer) aged(nanos, n, sent int64) {
	if sent != 0 && n > 0 {
		c.age.record(time.Duration(nanos), n)
	}
}

// consumers are those of one phase, some perhaps of several subscriptions in turn.
type consumers []*consumer

func (all consumers) records() []*record {
	records := make([]*record, len(all))
	for i, c := range all {
		records[i] = c.got
	}
	return records
}

// tally sums up what consumers did since start.
func (all consumers) tally(start time.Time) tally {
	var t tally
	var calls, busy, nacked int64
	consume, ack, nack := newLatencies(), newLatencies(), newLatencies()
	for _, c := range all {
		t.messages += c.messages
		t.elapsed = max(t.elapsed, c.lastAck.Sub(start))
		calls += c.calls
		busy += c.busy
		nacked += c.nacked
		consume.merge(c.consume)
		ack.merge(c.ack)
		nack.merge(c.nack)
	}
	t.metrics = append(t.metrics, Metric{"consume and ack calls, pairs", perSecond, divide(float64(calls), t.elapsed.Seconds())})
	t.metrics = append(t.metrics, consume.metrics("consume")...)
	t.metrics = append(t.metrics, ack.metrics("ack")...)
	if nacked > 0 {
		t.metrics = append(t.metrics, nack.metrics("nack")...)
		t.metrics = append(t.metrics, Metric{nacks, count, float64(nacked)})
	}
	t.metrics = append(t.metrics, Metric{"answers that it is busy", count, float64(busy)})
	return t
}

// rest consumes what a phase has left, after its time.
func (all consumers) rest(ctx context.Context) error {
	return workers(ctx, len(all), func(ctx context.Context, i int) error {
		for empty := 0; empty < 2; {
			n, err := all[i].call(ctx, 0)
			if err != nil {
				return err
			}
			if n == 0 {
				empty++
			}
		}
		return nil
	})
}
