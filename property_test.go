package fastpubsub_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestProperty runs random schedules of transactions that publish, stay open, roll back to savepoints, and commit in any
// order, beside consumers that take and ack, all at once on one topic, and compares with a model in memory: a message is
// delivered to a subscription once, if and only if it was committed after the subscription was created and matches its
// filter, not before that, and acked once.
func TestProperty(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	run, rotations := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		m := &model{t: t, rt: rt, b: b, db: db, topic: fmt.Sprintf("t%d", run), prefix: fmt.Sprintf("s%d-", run),
			subs: map[string]*modelSub{}}
		createTopic(t, b, m.topic)
		defer m.close()
		rt.Repeat(map[string]func(*rapid.T){
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
			"ack":        m.ack,
			"ack tx":     m.ackTx,
			"rotate": func(rt *rapid.T) {
				if run < 10*(rotations+1) || rotations == 4 { // the first makes a slot current that was so before
					rt.Skip("not now")
				}
				rotations++
				exec(t, db, `SELECT nextval('{schema}.message_slot'), nextval('{schema}.lease_slot')`)
			},
		})
		m.finish()
	})
}

// A model is what the engine should have, and the transactions that are open.
type model struct {
	t             *testing.T
	rt            *rapid.T
	b             *fastpubsub.Broker
	db            *storetest.DB
	topic, prefix string
	txs           []*modelTx
	subs          map[string]*modelSub
	published     int
}

// A modelTx has a level for itself and one for each of its savepoints.
type modelTx struct {
	levels []modelLevel
	readOK bool // READ COMMITTED, which sees what others have acked
}

type modelLevel struct {
	tx        pgx.Tx
	published []modelMessage
	acked     map[string][]fastpubsub.ID // by subscription
}

type modelMessage struct {
	id  fastpubsub.ID
	odd bool
}

type modelSub struct {
	odd    bool                   // the filter
	single bool                   // a lease for each message
	due    map[fastpubsub.ID]bool // committed, not delivered
	held   map[fastpubsub.ID]bool // delivered, not acked, in no open transaction either
	acked  map[fastpubsub.ID]bool
	// waiting has what open transactions have acked. Other acks of the same lease would wait for them.
	waiting map[fastpubsub.ID]bool
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
	tx, err := m.db.Pool.BeginTx(m.t.Context(), pgx.TxOptions{IsoLevel: level})
	if err != nil {
		rt.Fatal(err)
	}
	m.txs = append(m.txs, &modelTx{[]modelLevel{{tx: tx}}, level == pgx.ReadCommitted})
}

func (m *model) drawTx(rt *rapid.T) (int, *modelTx) {
	if len(m.txs) == 0 {
		rt.Skip("no transaction")
	}
	i := rapid.IntRange(0, len(m.txs)-1).Draw(rt, "tx")
	return i, m.txs[i]
}

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
	m.becomeDue(kept)
}

func (m *model) becomeDue(msgs []modelMessage) {
	for _, msg := range msgs {
		for _, sub := range m.subs {
			if !sub.odd || msg.odd {
				sub.due[msg.id] = true
			}
		}
	}
}

func (m *model) publishTx(rt *rapid.T) {
	_, tx := m.drawTx(rt)
	msgs, kept := m.messages(rt)
	top := &tx.levels[len(tx.levels)-1]
	for i, id := range publishTx(m.t, m.b, top.tx, m.topic, msgs...) {
		kept[i].id = id
	}
	top.published = append(top.published, kept...)
}

func (m *model) savepoint(rt *rapid.T) {
	_, tx := m.drawTx(rt)
	nested, err := tx.levels[len(tx.levels)-1].tx.Begin(m.t.Context())
	if err != nil {
		rt.Fatal(err)
	}
	tx.levels = append(tx.levels, modelLevel{tx: nested})
}

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
		m.undoAcks(top)
		return
	}
	m.must(top.tx.Commit(m.t.Context()))
	outer := &tx.levels[n-1]
	outer.published = append(outer.published, top.published...)
	for sub, ids := range top.acked {
		outer.ack(sub, ids)
	}
}

func (l *modelLevel) ack(sub string, ids []fastpubsub.ID) {
	if l.acked == nil {
		l.acked = map[string][]fastpubsub.ID{}
	}
	l.acked[sub] = append(l.acked[sub], ids...)
}

func (m *model) undoAcks(l modelLevel) {
	for name, ids := range l.acked {
		if sub := m.subs[name]; sub != nil {
			for _, id := range ids {
				delete(sub.waiting, id)
				sub.held[id] = true
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
	if !commit {
		m.must(tx.levels[0].tx.Rollback(m.t.Context()))
		for _, level := range tx.levels {
			m.undoAcks(level)
		}
		return
	}
	m.must(tx.levels[0].tx.Commit(m.t.Context()))
	for _, level := range tx.levels {
		m.becomeDue(level.published)
		for name, ids := range level.acked {
			if sub := m.subs[name]; sub != nil {
				for _, id := range ids {
					delete(sub.waiting, id)
					sub.acked[id] = true
				}
			}
		}
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
	sub := &modelSub{odd: rapid.Bool().Draw(rt, "odd"), single: rapid.Bool().Draw(rt, "single"), due: map[fastpubsub.ID]bool{},
		held: map[fastpubsub.ID]bool{}, acked: map[fastpubsub.ID]bool{}, waiting: map[fastpubsub.ID]bool{}}
	filter := noFilter
	if sub.odd {
		filter = `{"odd":[true]}`
	}
	createSubscription(m.t, m.b, name, m.topic, filter)
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
	if rapid.IntRange(0, 4).Draw(rt, "really") > 0 {
		rt.Skip("not now")
	}
	name, _ := m.drawSub(rt)
	m.must(m.b.DeleteSubscription(m.t.Context(), name))
	delete(m.subs, name)
	// What open transactions have acked of it counts for nothing, also for one of the same name.
	for _, tx := range m.txs {
		for _, level := range tx.levels {
			delete(level.acked, name)
		}
	}
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
	for i, msg := range msgs {
		if !sub.due[msg.ID] {
			m.rt.Fatalf("%s: %v came; held %t, acked %t", name, msg.ID, sub.held[msg.ID] || sub.waiting[msg.ID], sub.acked[msg.ID])
		}
		if i > 0 && slices.Compare(msgs[i-1].ID[:], msg.ID[:]) >= 0 {
			m.rt.Fatalf("%s: %v came after %v", name, msg.ID, msgs[i-1].ID)
		}
		delete(sub.due, msg.ID)
		sub.held[msg.ID] = true
	}
	return len(msgs) > 0
}

// ids draws some that are held and, to be ignored, some that are not.
func (m *model) ids(rt *rapid.T, sub *modelSub) (ids []fastpubsub.ID, held []fastpubsub.ID) {
	pick := func(from map[fastpubsub.ID]bool) (picked []fastpubsub.ID) {
		sorted := slices.SortedFunc(maps.Keys(from), func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) })
		share := rapid.IntRange(0, 3).Draw(rt, "share")
		for i, id := range sorted {
			if share == 3 || (i+share)%3 == 0 {
				picked = append(picked, id)
			}
		}
		return picked
	}
	held = pick(sub.held)
	ids = append(slices.Clone(held), pick(sub.acked)...)
	ids = append(ids, pick(sub.due)...)
	if rapid.Bool().Draw(rt, "reverse") {
		slices.Reverse(ids)
	}
	return ids, held
}

func (m *model) ack(rt *rapid.T) {
	name, sub := m.drawSub(rt)
	if len(sub.waiting) > 0 && !sub.single {
		rt.Skip("would wait")
	}
	ids, held := m.ids(rt, sub)
	n, err := m.b.Ack(m.t.Context(), name, ids)
	m.must(err)
	if n != len(held) {
		rt.Fatalf("%s: acked %d of %d", name, n, len(held))
	}
	for _, id := range held {
		delete(sub.held, id)
		sub.acked[id] = true
	}
}

func (m *model) ackTx(rt *rapid.T) {
	_, tx := m.drawTx(rt)
	if !tx.readOK {
		rt.Skip("an older snapshot may not see the lease")
	}
	name, sub := m.drawSub(rt)
	if len(sub.waiting) > 0 && !sub.single {
		rt.Skip("would wait")
	}
	ids, held := m.ids(rt, sub)
	top := &tx.levels[len(tx.levels)-1]
	n, err := m.b.AckTx(m.t.Context(), top.tx, name, ids)
	m.must(err)
	if n != len(held) {
		rt.Fatalf("%s: acked %d of %d in a transaction", name, n, len(held))
	}
	for _, id := range held {
		delete(sub.held, id)
		sub.waiting[id] = true
	}
	top.ack(name, held)
}

// finish ends what is open and looks whether everything comes that should.
func (m *model) finish() {
	for len(m.txs) > 0 {
		m.end(0, len(m.txs)%2 == 0)
	}
	for name, sub := range m.subs {
		for m.take(name, sub, 7) {
		}
		if len(sub.due) > 0 {
			m.rt.Fatalf("%s: %d messages are lost", name, len(sub.due))
		}
		ids := slices.Collect(maps.Keys(sub.held))
		n, err := m.b.Ack(m.t.Context(), name, ids)
		m.must(err)
		if n != len(ids) {
			m.rt.Fatalf("%s: acked %d of %d at the end", name, n, len(ids))
		}
	}
}

func (m *model) must(err error) {
	if err != nil {
		m.rt.Helper()
		m.rt.Fatal(err)
	}
}
