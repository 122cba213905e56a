package fastpubsub_test

import (
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
)

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
