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
	ids          []fastpubsub.ID // of one call

	got          *record
	consume, ack latencies // of calls that got something
	age          latencies // of messages, from their sent time, if they have one
	calls, busy  int64
	messages     int64
	lastAck      time.Time
}

func newConsumer(e *env, i int, subscription string) *consumer {
	return &consumer{
		e: e, name: "consumer-" + strconv.Itoa(i), subscription: subscription, got: new(record),
		ids:     make([]fastpubsub.ID, 0, e.config.Batch),
		consume: newLatencies(), ack: newLatencies(), age: newLatencies(),
	}
}

// call consumes once and acks what came. It returns how many messages that were; 0 too when the subscription was busy.
func (c *consumer) call(ctx context.Context, wait time.Duration) (int, error) {
	start := time.Now()
	msgs, err := c.e.broker.Consume(ctx, c.subscription, fastpubsub.ConsumeOptions{
		Consumer: c.name, Max: c.e.config.Batch, Wait: wait,
	})
	if errors.Is(err, fastpubsub.ErrBusy) {
		c.busy++
		return 0, nil
	}
	if err != nil || len(msgs) == 0 {
		return 0, err
	}
	consumed := time.Now()
	c.consume.record(consumed.Sub(start), 1)

	c.ids = c.ids[:0]
	at := consumed.UnixNano()
	lastSent, same := int64(0), int64(0) // neighbours were mostly sent by one call
	for _, m := range msgs {
		if err := checkPayload(m.Payload, c.e.config.PayloadBytes); err != nil {
			return 0, err
		}
		c.ids = append(c.ids, m.ID)
		c.got.add(number(m.Payload), at)
		if s := sent(m.Payload); s != lastSent {
			c.aged(at-lastSent, same, lastSent)
			lastSent, same = s, 0
		}
		same++
	}
	c.aged(at-lastSent, same, lastSent)

	before := time.Now()
	n, err := c.e.broker.Ack(ctx, c.subscription, c.ids)
	if err != nil {
		return 0, err
	}
	if n != len(c.ids) {
		return 0, fmt.Errorf("%w: of %d messages consumed, %d could be acked", ErrMismatch, len(c.ids), n)
	}
	c.lastAck = time.Now()
	c.ack.record(c.lastAck.Sub(before), 1)
	c.calls++
	c.messages += int64(n)
	return n, nil
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
	var calls, busy int64
	consume, ack := newLatencies(), newLatencies()
	for _, c := range all {
		t.messages += c.messages
		t.elapsed = max(t.elapsed, c.lastAck.Sub(start))
		calls += c.calls
		busy += c.busy
		consume.merge(c.consume)
		ack.merge(c.ack)
	}
	t.metrics = append(t.metrics, Metric{"consume and ack calls, pairs", perSecond, divide(float64(calls), t.elapsed.Seconds())})
	t.metrics = append(t.metrics, consume.metrics("consume")...)
	t.metrics = append(t.metrics, ack.metrics("ack")...)
	t.metrics = append(t.metrics, Metric{"answers that it is busy", count, float64(busy)})
	return t
}
