package fastpubsub_test

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

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
	truncated     int // slots
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

func (m *model) drawTx(rt *rapid.T) (int, *modelTx) {
	if len(m.txs) == 0 {
		rt.Skip("no transaction")
	}
	i := rapid.IntRange(0, len(m.txs)-1).Draw(rt, "tx")
	return i, m.txs[i]
}

func (tx *modelTx) top() *modelLevel { return &tx.levels[len(tx.levels)-1] }

func (m *model) drawSub(rt *rapid.T) (string, *modelSub) {
	if len(m.subs) == 0 {
		rt.Skip("no subscription")
	}
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(m.subs))).Draw(rt, "subscription")
	return name, m.subs[name]
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

func (m *model) must(err error) {
	if err != nil {
		m.rt.Helper()
		m.rt.Fatal(err)
	}
}
