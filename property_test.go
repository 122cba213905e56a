package fastpubsub_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestProperty runs random schedules of everything that can happen to messages, on one topic with several subscriptions, and
// compares with a model in memory: transactions that publish, ack and nack at every isolation level, stay open, roll back to
// savepoints and end in any order; consumers that take, ack, nack, extend and give back; a clock that moves, dead letters
// that are reprocessed and purged, subscriptions that are deleted and created again. After each step the place of every
// message, and all counts, are what the model says.
func TestProperty(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	clock := db.StopClock(t)
	run, rotations := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		m := &model{t: t, rt: rt, b: b, db: db, clock: clock, topic: fmt.Sprintf("t%d", run), prefix: fmt.Sprintf("s%d-", run),
			subs: map[string]*modelSub{}}
		createTopic(t, b, m.topic)
		defer m.close()
		steps := map[string]func(*rapid.T){
			"begin":      m.begin,
			"publish":    m.publish,
			"publish tx": m.publishTx,
			"savepoint":  m.savepoint,
			"release":    m.release,
			"commit":     m.commit,
			"rollback":   m.rollback,
			"subscribe":  m.subscribe,
			"delete":     m.deleteSubscription,
			"consume":    m.consume,
			"consume 2":  m.consume, // more often than the others
			"ack":        m.ack,
			"nack":       m.nack,
			"extend":     m.extend,
			"ack tx":     m.ackTx,
			"nack tx":    m.nackTx,
			"move clock": m.moveClock,
			"cleanup":    m.cleanup,
			"reprocess":  m.reprocess,
			"purge":      m.purge,
			"rotate": func(rt *rapid.T) {
				if run < 10*(rotations+1) || rotations == 4 { // the first makes a slot current that was so before
					rt.Skip("not now")
				}
				rotations++
				exec(t, db, `SELECT nextval('{schema}.message_slot'), nextval('{schema}.lease_slot')`)
			},
		}
		for name, step := range steps {
			steps[name] = func(rt *rapid.T) {
				step(rt)
				m.compare()
			}
		}
		rt.Repeat(steps)
		m.finish()
	})
}

// A model is what the engine should have, and the transactions that are open.
type model struct {
	t             *testing.T
	rt            *rapid.T
	b             *fastpubsub.Broker
	db            *storetest.DB
	clock         *storetest.Clock
	now           time.Duration // by which the clock was moved in this run
	topic, prefix string
	txs           []*modelTx
	subs          map[string]*modelSub
	published     int
	steps         int
}

// A modelTx has a level for itself and one for each of its savepoints.
type modelTx struct {
	levels   []modelLevel
	snapshot int // the step of its only snapshot; 0 for READ COMMITTED

	serializable bool
}

type modelLevel struct {
	tx        pgx.Tx
	published []modelMessage
	changes   []modelChange
}

type modelMessage struct {
	id  fastpubsub.ID
	odd bool
}

// A modelChange is what becomes of a message when the transaction commits.
type modelChange struct {
	sub   *modelSub
	id    fastpubsub.ID
	after place
}

type modelSub struct {
	num      int
	created  int  // the step
	odd      bool // the filter
	single   bool // a lease for each message
	attempts int  // at most
	min, max time.Duration
	deadline time.Duration
	places   map[fastpubsub.ID]*place // of every message that was committed while it existed
	acked    int
}

// The places that a message can have, as the engine names them, besides those in no table of its own.
const (
	inLog     = "in the log"
	available = "available"
	expired   = "expired"
	leased    = "leased"
	acked     = "acked"
	dead      = "dead"
)

type place struct {
	state    string
	attempts int
	at       time.Duration // next_at or deadline
	row      *modelRow     // that an operation locks; nil in the log
	surely   time.Duration // from then on a consumer must find it when it is due
}

// A modelRow is a row of deliveries, or the leases of one call to consume.
type modelRow struct {
	changed int      // the step
	tx      *modelTx // that has it locked
	lease   bool
}

func (m *model) close() {
	for _, tx := range m.txs {
		tx.levels[0].tx.Rollback(context.Background())
	}
}

func (m *model) begin(rt *rapid.T) {
	if len(m.txs) == 6 {
		rt.Skip("enough transactions")
	}
	level := rapid.SampledFrom([]pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}).Draw(rt, "isolation")
	pgTx, err := m.db.Pool.BeginTx(m.t.Context(), pgx.TxOptions{IsoLevel: level})
	m.must(err)
	tx := &modelTx{levels: []modelLevel{{tx: pgTx}}, serializable: level == pgx.Serializable}
	if level != pgx.ReadCommitted {
		_, err := pgTx.Exec(m.t.Context(), `SELECT 1`)
		m.must(err)
		tx.snapshot = m.steps + 1
	}
	m.txs = append(m.txs, tx)
}

func (m *model) drawTx(rt *rapid.T) (int, *modelTx) {
	if len(m.txs) == 0 {
		rt.Skip("no transaction")
	}
	i := rapid.IntRange(0, len(m.txs)-1).Draw(rt, "tx")
	return i, m.txs[i]
}

func (tx *modelTx) top() *modelLevel { return &tx.levels[len(tx.levels)-1] }

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

// enter puts messages that were committed into the subscriptions.
func (m *model) enter(msgs []modelMessage) {
	for _, msg := range msgs {
		for _, sub := range m.subs {
			if !sub.odd || msg.odd {
				sub.places[msg.id] = &place{state: inLog}
			}
		}
	}
}

func (m *model) publishTx(rt *rapid.T) {
	i, tx := m.drawTx(rt)
	msgs, kept := m.messages(rt)
	top := tx.top()
	ids, err := m.b.PublishTx(m.t.Context(), top.tx, m.topic, msgs...)
	if m.failed(i, err) {
		return
	}
	for i, id := range ids {
		kept[i].id = id
	}
	top.published = append(top.published, kept...)
}

func (m *model) savepoint(rt *rapid.T) {
	_, tx := m.drawTx(rt)
	nested, err := tx.top().tx.Begin(m.t.Context())
	m.must(err)
	tx.levels = append(tx.levels, modelLevel{tx: nested})
}

// failed ends a SERIALIZABLE transaction that Postgres has chosen to fail, as it may whenever such transactions overlap.
func (m *model) failed(i int, err error) bool {
	if m.txs[i].serializable && isSerializationFailure(err) {
		m.end(i, false)
		return true
	}
	m.must(err)
	return false
}

func isSerializationFailure(err error) bool { return wantCode(err, "40001") == nil }

// release ends the innermost savepoint, one way or the other.
func (m *model) release(rt *rapid.T) {
	_, tx := m.drawTx(rt)
	n := len(tx.levels) - 1
	if n == 0 {
		rt.Skip("no savepoint")
	}
	top := tx.levels[n]
	tx.levels = tx.levels[:n]
	if rapid.Bool().Draw(rt, "roll back") {
		m.must(top.tx.Rollback(m.t.Context()))
		m.unlock(tx)
		return
	}
	m.must(top.tx.Commit(m.t.Context()))
	outer := tx.top()
	outer.published = append(outer.published, top.published...)
	outer.changes = append(outer.changes, top.changes...)
}

// unlock lets go of the rows that none of the transaction's levels has changed any more.
func (m *model) unlock(tx *modelTx) {
	kept := map[*modelRow]bool{}
	for _, level := range tx.levels {
		for _, c := range level.changes {
			if p := c.sub.places[c.id]; p != nil {
				kept[p.row] = true
			}
		}
	}
	for _, sub := range m.subs {
		for _, p := range sub.places {
			if p.row != nil && p.row.tx == tx && !kept[p.row] {
				// A lock may outlast its savepoint's end, and whoever passed over the row comes back within ten seconds.
				p.surely = m.now + 10*time.Second
			}
		}
	}
	for _, sub := range m.subs {
		for _, p := range sub.places {
			if p.row != nil && p.row.tx == tx && !kept[p.row] {
				p.row.tx = nil
			}
		}
	}
}

func (m *model) commit(rt *rapid.T) {
	i, _ := m.drawTx(rt)
	m.end(i, true)
}

func (m *model) rollback(rt *rapid.T) {
	i, _ := m.drawTx(rt)
	m.end(i, false)
}

// end ends a transaction with all its savepoints.
func (m *model) end(i int, commit bool) {
	tx := m.txs[i]
	m.txs = slices.Delete(m.txs, i, i+1)
	levels := tx.levels
	tx.levels = nil
	if !commit {
		m.must(levels[0].tx.Rollback(m.t.Context()))
		m.unlock(tx)
		return
	}
	if err := levels[0].tx.Commit(m.t.Context()); tx.serializable && isSerializationFailure(err) {
		m.unlock(tx)
		return
	} else {
		m.must(err)
	}
	m.unlock(tx)
	for _, level := range levels {
		m.enter(level.published)
		for _, c := range level.changes {
			if p := c.sub.places[c.id]; p != nil {
				c.after.surely = m.now + 10*time.Second
				m.put(c.sub, c.id, p, c.after)
			}
		}
	}
}

// put gives a message another place.
func (m *model) put(sub *modelSub, id fastpubsub.ID, p *place, after place) {
	m.touch(p)
	if after.state == acked {
		sub.acked++
		delete(sub.places, id)
		return
	}
	if p.row == nil || p.row.lease {
		after.row = &modelRow{changed: m.steps + 1}
	} else {
		after.row = p.row
	}
	*p = after
}

func (m *model) touch(p *place) {
	if p.row != nil {
		p.row.changed = m.steps + 1
	}
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

func (m *model) drawSub(rt *rapid.T) (string, *modelSub) {
	if len(m.subs) == 0 {
		rt.Skip("no subscription")
	}
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(m.subs))).Draw(rt, "subscription")
	return name, m.subs[name]
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

// What the engine has, by message.
const readPlaces = `
SELECT {schema}.message_id(d.xid, d.seq), d.state::text, d.attempts FROM {schema}.deliveries d WHERE d.sub = $1 AND d.state <> 'acked'
UNION ALL
SELECT {schema}.message_id(m.xid, seq), 'lease', 1
FROM {schema}.leases l CROSS JOIN unnest(l.remaining) r CROSS JOIN generate_series(lower(r), upper(r) - 1) seq
JOIN {schema}.messages m ON m.base = seq & ~65535::bigint AND m.topic_num = (SELECT topic_num FROM {schema}.subscriptions WHERE num = l.sub)
WHERE l.sub = $1`

type actual struct {
	ID       [16]byte
	State    string
	Attempts int
}

func (m *model) read(sub *modelSub) map[fastpubsub.ID]actual {
	rows, _ := m.db.Pool.Query(m.t.Context(), m.db.SQL(readPlaces), sub.num)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[actual])
	m.must(err)
	places := map[fastpubsub.ID]actual{}
	for _, a := range all {
		if _, ok := places[a.ID]; ok {
			m.rt.Fatalf("%v is in two places", fastpubsub.ID(a.ID))
		}
		places[a.ID] = a
	}
	return places
}

// expire learns what the engine has done to leases that have run out. It may have ended them, or not yet; after a whole look
// it must have, but for those that somebody holds.
func (m *model) expire(sub *modelSub, whole bool) {
	places := m.read(sub)
	for id, p := range sub.places {
		if p.state != leased || p.at > m.now {
			continue
		}
		a := places[id]
		switch {
		case a.State == "lease" || a.State == leased:
			if whole && p.surely <= m.now && p.row.tx == nil {
				m.rt.Fatalf("the lease of %v, which is %+v, has not ended at %v", id, p, m.now)
			}
		case p.row.tx != nil && m.changedIn(p.row.tx, sub, id): // others may be in another lease of the same call
			m.rt.Fatalf("%v is %s while a transaction has it", id, a.State)
		case a.State == expired && p.attempts < sub.attempts, a.State == dead && p.attempts >= sub.attempts:
			m.put(sub, id, p, place{state: a.State, attempts: p.attempts, at: m.now, surely: p.surely})
		}
	}
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

// compare looks at the place of every message, and at the counts.
func (m *model) compare() {
	m.steps++
	for name, sub := range m.subs {
		places := m.read(sub)
		var want fastpubsub.Metrics
		for id, p := range sub.places {
			a, ok := places[id]
			delete(places, id)
			state := p.state
			switch {
			case p.state == inLog:
				if ok {
					m.rt.Fatalf("%s: %v is %v, want it in the log", name, id, a)
				}
				want.Available++
				continue
			case p.state == leased && p.row.lease:
				state = "lease"
			}
			if a.State != state || a.Attempts != p.attempts {
				m.rt.Fatalf("%s: %v is %s after %d attempts, want %+v at %v", name, id, a.State, a.Attempts, p, m.now)
			}
			switch p.state {
			case available, expired:
				want.Available++
				if p.at > m.now {
					want.Delayed++
				}
			case leased:
				want.Delivered++
			case dead:
				want.DeadLetters++
			}
		}
		for id, a := range places {
			m.rt.Fatalf("%s: %v is %s, want it nowhere", name, id, a.State)
		}
		want.Acked = int64(sub.acked)
		got, err := m.b.Metrics(m.t.Context(), name)
		m.must(err)
		if want.Available+want.Delivered == 0 && got.OldestUnackedAge > 0 || got.OldestUnackedAge > m.now {
			m.rt.Fatalf("%s: the oldest message is %v old after %v", name, got.OldestUnackedAge, m.now)
		}
		got.OldestUnackedAge = 0
		if got != want {
			m.rt.Fatalf("%s: metrics are %+v, want %+v", name, got, want)
		}
	}
}

// pick draws messages of all places, in some order. Those that an operation would wait for, or that an older snapshot sees
// otherwise, are left out. It returns the places of those that the operation should act on.
func (m *model) pick(rt *rapid.T, sub *modelSub, tx *modelTx, acts func(*place) bool) ([]fastpubsub.ID, map[fastpubsub.ID]*place) {
	byID := func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) }
	share := rapid.IntRange(0, 3).Draw(rt, "share")
	var ids []fastpubsub.ID
	acted := map[fastpubsub.ID]*place{}
	for i, id := range slices.SortedFunc(maps.Keys(sub.places), byID) {
		p := sub.places[id]
		if share < 3 && (i+share)%3 > 0 {
			continue
		}
		if p.row != nil && (p.row.tx != nil && (p.row.tx != tx || m.changedIn(tx, sub, id)) || tx != nil && tx.snapshot > 0 && p.row.changed >= tx.snapshot) {
			continue
		}
		ids = append(ids, id)
		if acts(p) {
			acted[id] = p
		}
	}
	if rapid.Bool().Draw(rt, "reverse") {
		slices.Reverse(ids)
	}
	return ids, acted
}

func (m *model) changedIn(tx *modelTx, sub *modelSub, id fastpubsub.ID) bool {
	for _, level := range tx.levels {
		for _, c := range level.changes {
			if c.sub == sub && c.id == id {
				return true
			}
		}
	}
	return false
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

// inTx runs an operation in a transaction, and notes what it does when that commits.
func (m *model) inTx(rt *rapid.T, acts func(*place) bool,
	run func(tx pgx.Tx, name string, sub *modelSub, ids []fastpubsub.ID, acted map[fastpubsub.ID]*place) (int, func(*place) place, error)) {
	i, tx := m.drawTx(rt)
	name, sub := m.drawSub(rt)
	if tx.snapshot > 0 && sub.created >= tx.snapshot {
		rt.Skip("its snapshot has no such subscription")
	}
	ids, acted := m.pick(rt, sub, tx, acts)
	top := tx.top()
	n, after, err := run(top.tx, name, sub, ids, acted)
	if m.failed(i, err) {
		return
	}
	if n != len(acted) {
		rt.Fatalf("%s: changed %d of %d in a transaction", name, n, len(acted))
	}
	for id, p := range acted {
		top.changes = append(top.changes, modelChange{sub, id, after(p)})
		p.row.tx = tx
	}
}

func (m *model) ackTx(rt *rapid.T) {
	m.inTx(rt, ackable, func(tx pgx.Tx, name string, _ *modelSub, ids []fastpubsub.ID, _ map[fastpubsub.ID]*place) (int, func(*place) place, error) {
		n, err := m.b.AckTx(m.t.Context(), tx, name, ids)
		return n, func(*place) place { return place{state: acked} }, err
	})
}

func (m *model) nackTx(rt *rapid.T) {
	m.inTx(rt, m.leasedNow, func(tx pgx.Tx, name string, sub *modelSub, ids []fastpubsub.ID, acted map[fastpubsub.ID]*place) (int, func(*place) place, error) {
		deliveries := m.withAttempts(rt, sub, ids, acted)
		options, after := m.nackOptions(rt, sub)
		n, err := m.b.NackTx(m.t.Context(), tx, name, deliveries, options)
		return n, after, err
	})
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

// finish ends what is open and looks whether everything comes in the end, or is dead.
func (m *model) finish() {
	for len(m.txs) > 0 {
		m.end(0, len(m.txs)%2 == 0)
	}
	m.compare()
	for name, sub := range m.subs {
		for range 200 {
			if !m.take(name, sub, 7) {
				m.move(61 * time.Second)
			}
			m.compare()
			left := 0
			for _, p := range sub.places {
				if p.state != dead {
					left++
				}
			}
			if left == 0 {
				break
			}
			ids := slices.Collect(maps.Keys(sub.places))
			slices.SortFunc(ids, func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) })
			ids = ids[:(len(ids)+1)/2] // the others run out
			acted := map[fastpubsub.ID]*place{}
			for _, id := range ids {
				if p := sub.places[id]; ackable(p) {
					acted[id] = p
				}
			}
			n, err := m.b.Ack(m.t.Context(), name, ids)
			m.must(err)
			if n != len(acted) {
				m.rt.Fatalf("%s: acked %d of %d at the end", name, n, len(acted))
			}
			for id, p := range acted {
				m.put(sub, id, p, place{state: acked})
			}
		}
		for id, p := range sub.places {
			if p.state != dead {
				m.rt.Fatalf("%s: %v is still %+v", name, id, p)
			}
		}
	}
}

func (m *model) must(err error) {
	if err != nil {
		m.rt.Helper()
		m.rt.Fatal(err)
	}
}
