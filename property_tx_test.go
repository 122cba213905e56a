package fastpubsub_test

import (
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/fastpubsub/fastpubsub"
)

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
