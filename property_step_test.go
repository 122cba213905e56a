package fastpubsub_test

import (
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub"
)

func (m *model) messages(rt *rapid.T) ([]fastpubsub.NewMessage, []modelMessage) {
	n := rapid.SampledFrom([]int{1, 1, 2, 3, 7, 40}).Draw(rt, "n")
	msgs := make([]fastpubsub.NewMessage, n)
	kept := make([]modelMessage, n)
	for i := range msgs {
		kept[i].odd = m.published%2 == 1
		msgs[i] = fastpubsub.JSON(map[string]any{"n": m.published, "odd": kept[i].odd})
		m.published++
	}
	return msgs, kept
}

func (m *model) publish(rt *rapid.T) {
	msgs, kept := m.messages(rt)
	for i, id := range publish(m.t, m.b, m.topic, msgs...) {
		kept[i].id = id
	}
	m.enter(kept)
}

func (m *model) subscribe(rt *rapid.T) {
	if len(m.subs) == 3 {
		rt.Skip("enough subscriptions")
	}
	// The name of one that was deleted may come again.
	name := fmt.Sprint(m.prefix, rapid.IntRange(0, 2).Draw(rt, "subscription"))
	if m.subs[name] != nil {
		rt.Skip("exists")
	}
	sub := &modelSub{
		odd:      rapid.Bool().Draw(rt, "odd"),
		single:   rapid.Bool().Draw(rt, "single"),
		attempts: rapid.IntRange(1, 4).Draw(rt, "attempts"),
		min:      time.Duration(rapid.IntRange(1, 5).Draw(rt, "min")) * time.Second,
		deadline: time.Duration(rapid.SampledFrom([]int{1, 5, 30}).Draw(rt, "deadline")) * time.Second,
		places:   map[fastpubsub.ID]*place{},
		created:  m.steps + 1,
	}
	sub.max = sub.min + time.Duration(rapid.IntRange(0, 5).Draw(rt, "max"))*time.Second
	s := fastpubsub.Subscription{ID: name, TopicID: m.topic, SubscriptionSettings: fastpubsub.SubscriptionSettings{
		MaxDeliveryAttempts: sub.attempts, BackoffMin: sub.min, BackoffMax: sub.max, AckDeadline: sub.deadline}}
	if sub.odd {
		m.must(s.Filter.UnmarshalJSON([]byte(`{"odd":[true]}`)))
	}
	_, err := m.b.CreateSubscription(m.t.Context(), s)
	m.must(err)
	sub.num = query[int](m.t, m.db, `SELECT num FROM {schema}.subscriptions WHERE id = $1`, name)
	m.subs[name] = sub
}

func (m *model) deleteSubscription(rt *rapid.T) {
	if rapid.IntRange(0, 9).Draw(rt, "really") > 0 {
		rt.Skip("not now")
	}
	name, sub := m.drawSub(rt)
	m.must(m.b.DeleteSubscription(m.t.Context(), name))
	delete(m.subs, name)
	sub.places = nil // what open transactions have done with it counts for nothing, also for one of the same name
}

func (m *model) moveClock(rt *rapid.T) {
	m.move(time.Duration(rapid.SampledFrom([]int{1, 1, 2, 5, 30}).Draw(rt, "seconds")) * time.Second)
}

func (m *model) move(d time.Duration) {
	m.must(m.clock.Move(m.t.Context(), d))
	m.now += d
}

func (m *model) consume(rt *rapid.T) {
	name, sub := m.drawSub(rt)
	m.take(name, sub, rapid.SampledFrom([]int{1, 2, 3, 10, 100, 1000}).Draw(rt, "max"))
}

// take consumes once and returns whether anything came.
func (m *model) take(name string, sub *modelSub, max int) bool {
	msgs, err := m.b.Consume(m.t.Context(), name, fastpubsub.ConsumeOptions{Consumer: "test", Max: max, Single: sub.single})
	m.must(err)
	if len(msgs) > max {
		m.rt.Fatalf("%s: %d messages came, at most %d were asked for", name, len(msgs), max)
	}
	lease := &modelRow{changed: m.steps + 1, lease: true}
	for i, msg := range msgs {
		p := sub.places[msg.ID]
		again := p != nil && p.state != inLog
		switch {
		case p == nil || p.state == dead || p.state == leased && p.at > m.now || again && (p.at > m.now || p.attempts >= sub.attempts) ||
			p.row != nil && p.row.tx != nil:
			m.rt.Fatalf("%s: %v came, which is %+v at %v", name, msg.ID, p, m.now)
		case msg.DeliveryAttempts != p.attempts+1:
			m.rt.Fatalf("%s: %v came for the %d. time, which is %+v", name, msg.ID, msg.DeliveryAttempts, p)
		case i > 0 && slices.Compare(msgs[i-1].ID[:], msg.ID[:]) >= 0 && (msgs[i-1].DeliveryAttempts > 1) == (msg.DeliveryAttempts > 1):
			if again == (sub.places[msgs[i-1].ID].row != lease) { // otherwise the log begins here
				m.rt.Fatalf("%s: %v came after %v", name, msg.ID, msgs[i-1].ID)
			}
		}
		next := place{state: leased, attempts: p.attempts + 1, at: m.now + sub.deadline}
		if again {
			m.put(sub, msg.ID, p, next)
			continue
		}
		next.row = lease
		if sub.single {
			next.at += time.Millisecond // the leases of one call run out one after the other
			next.row = &modelRow{changed: m.steps + 1, lease: true}
		}
		*p = next
	}
	m.expire(sub, len(msgs) < max)
	if len(msgs) < max {
		for id, p := range sub.places {
			// A call that has something may end at a transaction in progress, or behind late ones.
			if p.state == inLog && len(msgs) == 0 || (p.state == available || p.state == expired) && p.at <= m.now && p.surely <= m.now && p.row.tx == nil {
				m.rt.Fatalf("%s: %v did not come, which is %+v at %v", name, id, p, m.now)
			}
		}
	}
	return len(msgs) > 0
}

func (m *model) cleanup(*rapid.T) {
	_, err := m.b.CleanupStuck(m.t.Context())
	m.must(err)
	for _, sub := range m.subs {
		for _, p := range sub.places { // it looks at everything
			if p.state == leased && (p.row.tx == nil) {
				p.surely = 0
			}
		}
		m.expire(sub, true)
	}
}

func (m *model) rotate(*rapid.T) {
	exec(m.t, m.db, `SELECT {schema}.rotate(ring, '0', 0) FROM unnest(ARRAY['messages', 'leases']) ring`)
}

// maintain moves everything out of slots that are not current, and truncates those that it can.
func (m *model) maintain(*rapid.T) {
	for slot := range int16(4) {
		exec(m.t, m.db, `SELECT {schema}.vacate(sub_id, $1, NULL) FROM {schema}.lease_slot_needs($1) WHERE $1 <> {schema}.current_slot('leases')`, slot)
		exec(m.t, m.db, `SELECT {schema}.vacate(sub_id, NULL, $1) FROM {schema}.message_slot_needs($1) WHERE $1 <> {schema}.current_slot('messages')`, slot)
	}
	for name, sub := range m.subs {
		for slot := range int16(4) {
			for moved := 1; moved > 0; {
				moved = query[int](m.t, m.db, `
					SELECT coalesce((SELECT (SELECT moved FROM {schema}.spill(sub_id))
					                 FROM {schema}.message_slot_needs($2)
					                 WHERE sub_id = $1 AND backlog AND $2 <> {schema}.current_slot('messages')), 0)`, name, slot)
			}
		}
		m.learnMoves(sub)
	}
	m.truncated += query[int](m.t, m.db, `
		SELECT count(*) FILTER (WHERE ({schema}.truncate_slot(ring, slot::smallint, '1 hour')).outcome = 'truncated')
		FROM unnest(ARRAY['leases', 'messages']) ring, generate_series(0, 3) slot`)
}

// learnMoves learns what maintenance has moved to deliveries.
func (m *model) learnMoves(sub *modelSub) {
	places := m.read(sub)
	for id, p := range sub.places {
		a := places[id]
		switch {
		case p.state == inLog && a.State == available && a.Attempts == 0:
			m.put(sub, id, p, place{state: available, at: m.now})
		case p.state == leased && p.row.lease && a.State == leased:
			m.put(sub, id, p, place{state: leased, attempts: 1, at: p.at, surely: p.surely})
		}
	}
}

func ackable(p *place) bool { return p.state == leased || p.state == expired }

func (m *model) leasedNow(p *place) bool { return p.state == leased && p.at > m.now }

func (m *model) ack(rt *rapid.T) {
	name, sub := m.drawSub(rt)
	ids, acted := m.pick(rt, sub, nil, ackable)
	n, err := m.b.Ack(m.t.Context(), name, ids)
	m.must(err)
	if n != len(acted) {
		rt.Fatalf("%s: acked %d of %d", name, n, len(acted))
	}
	for id, p := range acted {
		m.put(sub, id, p, place{state: acked})
	}
}

// withAttempts draws whether deliveries are named with their attempts, some of them wrong.
func (m *model) withAttempts(rt *rapid.T, sub *modelSub, ids []fastpubsub.ID, acted map[fastpubsub.ID]*place) []fastpubsub.Delivery {
	all := make([]fastpubsub.Delivery, len(ids))
	mode := rapid.IntRange(0, 2).Draw(rt, "attempts")
	for i, id := range ids {
		all[i].ID = id
		if mode > 0 {
			all[i].DeliveryAttempts = max(1, sub.places[id].attempts)
		}
		if mode == 2 && i%2 == 0 {
			all[i].DeliveryAttempts++
			delete(acted, id)
		}
	}
	return all
}

// nackOptions draws options and returns what they make of a message.
func (m *model) nackOptions(rt *rapid.T, sub *modelSub) (fastpubsub.NackOptions, func(*place) place) {
	var o fastpubsub.NackOptions
	switch rapid.IntRange(0, 2).Draw(rt, "options") {
	case 0:
		o.Immediate = true
	case 1:
		o.Delay = 3 * time.Second
	}
	now := m.now
	return o, func(p *place) place {
		if p.attempts >= sub.attempts {
			return place{state: dead, attempts: p.attempts, at: now}
		}
		wait := o.Delay
		if !o.Immediate && wait == 0 {
			wait = sub.min
			for range p.attempts - 1 {
				wait = min(2*wait, sub.max)
			}
		}
		return place{state: available, attempts: p.attempts, at: now + wait}
	}
}

func (m *model) nack(rt *rapid.T) {
	name, sub := m.drawSub(rt)
	ids, acted := m.pick(rt, sub, nil, m.leasedNow)
	deliveries := m.withAttempts(rt, sub, ids, acted)
	options, after := m.nackOptions(rt, sub)
	n, err := m.b.Nack(m.t.Context(), name, deliveries, options)
	m.must(err)
	if n != len(acted) {
		rt.Fatalf("%s: nacked %d of %d", name, n, len(acted))
	}
	for id, p := range acted {
		m.put(sub, id, p, after(p))
	}
}

func (m *model) extend(rt *rapid.T) {
	name, sub := m.drawSub(rt)
	ids, acted := m.pick(rt, sub, nil, m.leasedNow)
	deliveries := m.withAttempts(rt, sub, ids, acted)
	d := time.Duration(rapid.SampledFrom([]int{0, 0, 1, 60}).Draw(rt, "seconds")) * time.Second
	n, err := m.b.Extend(m.t.Context(), name, deliveries, d)
	m.must(err)
	if n != len(acted) {
		rt.Fatalf("%s: extended %d of %d", name, n, len(acted))
	}
	for id, p := range acted {
		after := place{state: leased, attempts: p.attempts, at: m.now + d}
		if d == 0 {
			after = place{state: available, attempts: p.attempts - 1, at: m.now}
		}
		m.put(sub, id, p, after)
	}
}

func isDead(p *place) bool { return p.state == dead }

func (m *model) reprocess(rt *rapid.T) {
	name, sub := m.drawSub(rt)
	ids, acted := m.pick(rt, sub, nil, isDead)
	n, err := m.b.Reprocess(m.t.Context(), name, ids)
	m.must(err)
	if n != len(acted) {
		rt.Fatalf("%s: reprocessed %d of %d", name, n, len(acted))
	}
	for id, p := range acted {
		m.put(sub, id, p, place{state: available, at: m.now})
	}
}

func (m *model) purge(rt *rapid.T) {
	if rapid.IntRange(0, 3).Draw(rt, "really") > 0 {
		rt.Skip("not now")
	}
	name, sub := m.drawSub(rt)
	ids, acted := m.pick(rt, sub, nil, isDead)
	n, err := m.b.Purge(m.t.Context(), name, ids)
	m.must(err)
	if n != len(acted) {
		rt.Fatalf("%s: purged %d of %d", name, n, len(acted))
	}
	for id := range acted {
		delete(sub.places, id)
	}
}
