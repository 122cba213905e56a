package fastpubsub_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A million is a schema with so many messages, of one each published alone, in all slots of the log. Its subscriptions:
//
//   - behind has had the first few;
//   - filtered is like it, with a filter;
//   - spilled has a tenth of them in deliveries, in all states, and all others before it;
//   - ahead has had the last tenth, by a lease for each, in all slots of leases.
type million struct {
	db       *storetest.DB
	messages int
	sessions map[string]*explained
	seen     coverage
	filled   bool // before that plans do not matter
}

var millionSubscriptions = []string{"behind", "filtered", "spilled", "ahead"}

// newMillion makes the tables and sessions, some of which make their plans while the tables are empty.
func newMillion(t *testing.T, messages int) *million {
	t.Helper()
	_, db := storetest.NewServer(t, map[string]string{"fsync": "off", "synchronous_commit": "off", "max_wal_size": "4GB", "shared_buffers": "256MB"})
	m := &million{db: db, messages: messages, sessions: map[string]*explained{}, seen: coverage{}}
	b := m.open(t, "old")
	createTopic(t, b, "t")
	for _, id := range millionSubscriptions {
		filter := noFilter
		if id == "filtered" {
			filter = `{"n":[1]}`
		}
		createSubscription(t, b, id, "t", filter)
	}
	return m
}

// open opens a session. It has the broker that the test prepares with, too.
func (m *million) open(t *testing.T, name string) *fastpubsub.Broker {
	t.Helper()
	mode := "auto"
	if strings.Contains(name, "generic") {
		mode = "force_generic_plan"
	} else if strings.Contains(name, "custom") {
		mode = "force_custom_plan"
	}
	m.sessions[name] = newExplained(t, m.db, "SET plan_cache_mode = "+mode)
	return m.sessions[name].broker
}

// fill publishes the messages, and lets the subscriptions get to where they are.
func (m *million) fill(t *testing.T) {
	t.Helper()
	const together = 1000
	last := m.messages / 10
	workers := func(n int, sql string, args ...any) {
		t.Helper()
		var g errgroup.Group
		g.SetLimit(2)
		for range n {
			g.Go(func() error {
				_, err := m.db.Pool.Exec(t.Context(), m.db.SQL(sql), args...)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	// What publish writes for a message alone, but by a statement for a thousand.
	publish := func(n int) {
		t.Helper()
		workers(n/together, `
			INSERT INTO {schema}.messages (xid, base, created_at, topic_num, n, slot, payloads)
			SELECT pg_current_xact_id()::text::bigint, nextval('{schema}.message_base') << 16, {schema}.clock(), t.num, 1, s.last_value & 3,
			       ARRAY['{"n":' || i || '}']
			FROM {schema}.topics t, {schema}.message_slot s, generate_series(1, $1) i`, together)
	}
	for part := range 4 {
		if part > 0 {
			exec(t, m.db, `SELECT {schema}.rotate('messages', '0', 0)`)
		}
		publish((m.messages - last) / 4)
	}
	exec(t, m.db, `SELECT {schema}.claim('behind', 'test', 100, 3600, true)`)
	// The last one has had all of these, long ago.
	exec(t, m.db, `
		INSERT INTO {schema}.cursors (gen, xid, seq, sub, slot, late_xids, late_seqs)
		SELECT c.gen + 1, (SELECT max(xid) FROM {schema}.messages), (1::bigint << 62) - 1, s.num, {schema}.current_slot('leases'), '{}', '{}'
		FROM {schema}.subscriptions s, {schema}.newest_cursor(s.num) c WHERE s.id = 'ahead'`)
	publish(last)
	for range last / together {
		exec(t, m.db, `SELECT {schema}.spill('spilled')`)
	}
	exec(t, m.db, `
		UPDATE {schema}.deliveries d
		SET state = CASE part WHEN 0 THEN 'leased' WHEN 1 THEN 'dead' WHEN 2 THEN 'acked' ELSE 'available' END::{schema}.delivery_state,
		    attempts = CASE WHEN part <= 2 THEN 1 ELSE 0 END,
		    next_at = next_at + CASE WHEN part IN (0, 3) THEN interval '1 hour' ELSE '0' END,
		    dead_at = CASE part WHEN 1 THEN next_at END
		FROM (SELECT xid, seq, row_number() OVER (ORDER BY xid, seq) % 6 AS part FROM {schema}.deliveries) p
		WHERE (p.xid, p.seq) = (d.xid, d.seq)`)
	for part := range 4 {
		if part > 0 {
			exec(t, m.db, `SELECT {schema}.rotate('leases', '0', 0)`)
		}
		for range last / together / 4 {
			exec(t, m.db, `SELECT {schema}.claim('ahead', 'test', $1, 3600, true)`, together)
		}
	}
	// All but the last of these were acked and swept long ago.
	exec(t, m.db, `
		UPDATE {schema}.leases l SET deadline = {schema}.clock() - interval '1 hour', acked = 1, remaining = '{}'
		FROM {schema}.subscriptions s WHERE s.id = 'ahead' AND l.sub = s.num AND l.first_seq >> 16 & 15 <> 0`)
	exec(t, m.db, `
		UPDATE {schema}.cursors c SET swept_to = {schema}.clock() - interval '30 minutes', due_to = {schema}.clock()
		FROM {schema}.subscriptions s WHERE s.id = 'ahead' AND c.sub = s.num`)
	exec(t, m.db, `VACUUM {schema}.deliveries`) // as if it had been filled as it is
}

// run runs what works on n messages in a session and looks at the plans.
func (m *million) run(e *explained, n int, what string, do func() error) error {
	e.take()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	plans := e.take()
	m.seen.add(plans)
	if bad := badPlans(plans, n); len(bad) > 0 && m.filled {
		return fmt.Errorf("%s: %s", what, strings.Join(bad, "\n"))
	}
	return nil
}

// everything does everything that is done often, in one session, and returns what is wrong with the plans.
func (m *million) everything(t *testing.T, e *explained) error {
	t.Helper()
	ctx := t.Context()
	b := e.broker
	var errs []error
	do := func(n int, what string, f func() error) {
		t.Helper()
		if err := m.run(e, n, what, f); err != nil {
			errs = append(errs, err)
		}
	}
	call := func(n int, sql string, args ...any) {
		t.Helper()
		do(n, sql, func() error {
			_, err := e.pool.Exec(ctx, m.db.SQL(sql), args...)
			return err
		})
	}
	counted := func(n int, what string, want int, f func() (int, error)) {
		t.Helper()
		do(n, what, func() error {
			got, err := f()
			if err == nil && got != want {
				err = fmt.Errorf("it did %d, not %d", got, want)
			}
			return err
		})
	}
	look := func() { // at what is due, from the beginning
		exec(t, m.db, `UPDATE {schema}.cursors c SET due_to = '-infinity'
			WHERE (c.sub, c.gen) IN (SELECT s.num, n.gen FROM {schema}.subscriptions s, {schema}.newest_cursor(s.num) n)`)
	}

	for _, payload := range []fastpubsub.NewMessage{{Payload: []byte(`{"n":1}`)}, {Payload: []byte(`{"n":1}`), Attributes: map[string]string{"k": "v"}}} {
		do(1, "publish", func() error {
			_, err := b.Publish(ctx, "t", payload)
			return err
		})
	}
	for _, id := range millionSubscriptions {
		for _, single := range []bool{false, true} {
			for _, due := range []bool{false, true} {
				if due {
					look()
				}
				var msgs []fastpubsub.Message
				n := 20
				if id == "filtered" {
					n = 2500 // ten thousand are examined
				}
				do(n, "consume from "+id, func() (err error) {
					msgs, err = b.Consume(ctx, id, fastpubsub.ConsumeOptions{Consumer: "test", Max: 10, Single: single})
					return err
				})
				part := len(msgs) / 5
				if part == 0 {
					continue
				}
				counted(part, "ack on "+id, part, func() (int, error) { return b.Ack(ctx, id, idsOf(msgs[:part])) })
				counted(part, "ack on "+id+" again", 0, func() (int, error) { return b.Ack(ctx, id, idsOf(msgs[:part])) })
				counted(part, "nack on "+id, part, func() (int, error) {
					return b.Nack(ctx, id, deliveriesOf(msgs[part:2*part]), fastpubsub.NackOptions{Immediate: true})
				})
				counted(part, "extend on "+id, part, func() (int, error) {
					return b.Extend(ctx, id, deliveriesOf(msgs[2*part:3*part]), time.Hour)
				})
				counted(part, "extend on "+id+" again", part, func() (int, error) {
					return b.Extend(ctx, id, deliveriesOf(msgs[2*part:3*part]), time.Hour)
				})
				counted(part, "nack on "+id+" of what was extended", part, func() (int, error) {
					return b.Nack(ctx, id, deliveriesOf(msgs[2*part:3*part]), fastpubsub.NackOptions{Delay: time.Hour})
				})
				// What is left runs out: here in the log's leases, below in deliveries.
				exec(t, m.db, `
					UPDATE {schema}.leases l SET deadline = {schema}.clock()
					FROM {schema}.subscriptions s, {schema}.newest_cursor(s.num) c
					WHERE s.id = $1 AND l.sub = s.num AND l.deadline > {schema}.clock() AND NOT isempty(l.remaining)
					  AND l.first_seq = ANY ($2)`, id, m.seqs(msgs[3*part:]))
				exec(t, m.db, `
					UPDATE {schema}.deliveries d SET next_at = {schema}.clock()
					FROM {schema}.subscriptions s WHERE s.id = $1 AND d.sub = s.num AND d.seq = ANY ($2) AND d.state = 'leased'`, id, m.seqs(msgs[3*part:]))
				look()
				do(n, "consume from "+id+" what has run out", func() error {
					_, err := b.Consume(ctx, id, fastpubsub.ConsumeOptions{Consumer: "other", Max: 10})
					return err
				})
			}
		}
	}

	// Late transactions, one of many record batches, which ahead passes.
	late := begin(t, m.db, pgx.TxOptions{})
	for range 20 {
		if _, err := late.Exec(ctx, m.db.SQL(`SELECT {schema}.publish('t', ARRAY['{"n":1}'], NULL)`)); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, m.db, `SELECT {schema}.publish('t', ARRAY['{"n":1}'], NULL)`)
	call(20*len(millionSubscriptions), `SELECT {schema}.look($1)`, millionSubscriptions)
	for range 5 {
		do(20, "consume beside an open transaction", func() error {
			_, err := b.Consume(ctx, "ahead", fastpubsub.ConsumeOptions{Consumer: "test", Max: 10})
			return err
		})
	}
	commit(t, late)
	for _, single := range []bool{true, false} {
		var msgs []fastpubsub.Message
		do(20, "consume from a late transaction", func() (err error) {
			msgs, err = b.Consume(ctx, "ahead", fastpubsub.ConsumeOptions{Consumer: "test", Max: 9, Single: single})
			if err == nil && len(msgs) < 9 {
				err = fmt.Errorf("%d messages came", len(msgs))
			}
			return err
		})
		if len(msgs) < 9 {
			continue
		}
		counted(3, "ack of a late transaction", 3, func() (int, error) { return b.Ack(ctx, "ahead", idsOf(msgs[:3])) })
		counted(3, "nack of a late transaction", 3, func() (int, error) {
			return b.Nack(ctx, "ahead", deliveriesOf(msgs[3:6]), fastpubsub.NackOptions{Delay: time.Hour})
		})
	}

	call(20*len(millionSubscriptions), `SELECT {schema}.look($1)`, millionSubscriptions)
	call(2000, `SELECT {schema}.sweep('spilled')`) // removes a thousand rows
	for _, id := range millionSubscriptions {
		exec(t, m.db, `
			UPDATE {schema}.leases l SET deadline = {schema}.clock()
			FROM {schema}.subscriptions s WHERE s.id = $1 AND l.sub = s.num AND (l.first_xid, l.first_seq) IN (
				SELECT l.first_xid, l.first_seq FROM {schema}.leases l, {schema}.subscriptions s, {schema}.newest_cursor(s.num) c
				WHERE s.id = $1 AND l.sub = s.num AND l.deadline > c.swept_to ORDER BY l.deadline LIMIT 50)`, id)
		n := 1000
		if id == "filtered" { // a lease goes from its first message to its last
			n = m.messages
		}
		call(20*len(millionSubscriptions), `SELECT {schema}.expired()`)
		call(n, `SELECT {schema}.sweep($1)`, id)
	}
	for _, slot := range []int{0, 1, 2, 3} {
		// What is leased is looked at lease by lease, where nothing in the slot is.
		call(m.messages/160, `SELECT {schema}.message_slot_needs($1::smallint)`, slot)
		call(20, `SELECT {schema}.lease_slot_needs($1::smallint)`, slot)
		call(m.messages/160, `SELECT {schema}.truncate_slot('messages', $1::smallint, '1 hour')`, slot)
		call(20, `SELECT {schema}.truncate_slot('leases', $1::smallint, '1 hour')`, slot)
	}
	for _, ring := range []string{"messages", "leases"} {
		call(1, `SELECT {schema}.rotate($1, '1 hour', 1099511627776)`, ring)
		call(1, `SELECT {schema}.current_slot($1)`, ring)
	}
	call(1000, `SELECT {schema}.spill('behind')`)
	call(10_000, `SELECT {schema}.spill('filtered')`)
	call(1000, `SELECT {schema}.vacate('ahead', 0::smallint, NULL)`)
	call(1000, `SELECT {schema}.vacate('ahead', NULL, {schema}.current_slot('messages'))`)
	for _, id := range millionSubscriptions {
		call(m.messages, `SELECT {schema}.metrics($1)`, id)
		do(20, "dead letters of "+id, func() error {
			letters, err := b.DeadLetters(ctx, id, fastpubsub.ListOptions{Limit: 10})
			if err != nil || len(letters) < 10 {
				return err
			}
			ids := make([]fastpubsub.ID, len(letters))
			for i, letter := range letters {
				ids[i] = letter.ID
			}
			_, err = b.Reprocess(ctx, id, ids[:5])
			_, purgeErr := b.Purge(ctx, id, ids[5:])
			return errors.Join(err, purgeErr)
		})
	}
	return errors.Join(errs...)
}

// seqs are those of messages, which are in their ids.
func (m *million) seqs(msgs []fastpubsub.Message) []int64 {
	all := make([]int64, len(msgs))
	for i, msg := range msgs {
		all[i] = int64(binary.BigEndian.Uint64(msg.ID[8:]) & (1<<62 - 1))
	}
	return all
}

// forget lets the tables look as if they had never been analyzed.
const forget = `
DELETE FROM pg_statistic WHERE starelid IN (SELECT oid FROM pg_class WHERE relnamespace = '{schema}'::regnamespace);
UPDATE pg_class SET reltuples = -1, relpages = 0, relallvisible = 0 WHERE relnamespace = '{schema}'::regnamespace AND relkind IN ('r', 'p', 'i')`

// TestPlansOfAMillion reads the plan of every statement in the engine's functions that looks into a large table, when there
// is a lot in it and the statistics say something else.
func TestPlansOfAMillion(t *testing.T) {
	messages := 1_000_000
	if testing.Short() {
		messages = 100_000
	}
	begun := time.Now()
	m := newMillion(t, messages)
	exec(t, m.db, `ALTER TABLE {schema}.deliveries SET (autovacuum_enabled = off)`) // statistics are what the test makes of them
	exec(t, m.db, `ANALYZE`)
	if err := m.everything(t, m.sessions["old"]); err != nil {
		t.Errorf("empty: %v", err)
	}
	m.fill(t)
	m.filled = true
	t.Logf("there are %d messages after %v", messages, time.Since(begun))

	// In a session that had its plans before, and in a new one.
	check := func(mode string) func(t *testing.T) {
		return func(t *testing.T) {
			m.open(t, mode)
			for _, name := range []string{"old", mode} {
				if err := m.everything(t, m.sessions[name]); err != nil {
					t.Errorf("%s session: %v", name, err)
				}
			}
		}
	}
	t.Run("analyzed when empty", check("generic"))
	several(t, m.db, forget)
	t.Run("never analyzed", check("custom"))
	exec(t, m.db, `ANALYZE`)
	t.Run("analyzed", check("generic"))
	exec(t, m.db, `VACUUM`)
	t.Run("vacuumed", check("custom"))
	t.Run("with a plan that is bad", m.bad)
	for _, line := range m.seen.missing(m.db.Schema,
		"SELECT l.remaining INTO old",                      // when somebody else has just changed the lease, by its key
		"WHERE d.sub = sub_num LIMIT 1",                    // after a slow look
		"(gen, xid, seq, sub, slot, late_xids, late_seqs)", // a new subscription
		"repair: ", // reads all there is, once
	) {
		t.Errorf("no plan has been seen of the line %s", line)
	}

	// The slots are emptied. What is known of the values in them is still that of a million.
	m.messages = 10_000
	refill := func() {
		t.Helper()
		for _, id := range millionSubscriptions {
			createSubscription(t, m.sessions["old"].broker, id, "t", noFilter)
		}
		exec(t, m.db, `SELECT {schema}.publish('t', ARRAY['{"n":1}'], NULL) FROM generate_series(1, 2000)`)
		exec(t, m.db, `SELECT {schema}.spill('spilled')`)
	}
	m.empty(t)
	refill()
	t.Run("truncated after it was analyzed", check("generic"))
	m.empty(t)
	exec(t, m.db, `VACUUM ANALYZE`)
	refill()
	t.Run("vacuumed when truncated", check("custom"))
	t.Logf("all took %v", time.Since(begun))
}

// several runs statements that have no arguments.
func several(t *testing.T, db *storetest.DB, sql string) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), db.SQL(sql), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
}

// empty deletes the subscriptions and gives all space back.
func (m *million) empty(t *testing.T) {
	t.Helper()
	b := maintainedBroker(t, m.db)
	for _, id := range millionSubscriptions {
		if err := b.DeleteSubscription(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	emptied(t, b, m.db)
	emptied(t, b, m.db) // what was the current slot
	if _, err := b.CleanupStuck(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// bad spoils plans and wants that to be seen.
func (m *million) bad(t *testing.T) {
	claim := func(id, want string) {
		t.Helper()
		m.open(t, "bad")
		exec(t, m.db, `UPDATE {schema}.cursors SET due_to = '-infinity'`)
		err := m.run(m.sessions["bad"], 20, "claim", func() error {
			_, err := m.sessions["bad"].pool.Exec(t.Context(), m.db.SQL(`SELECT {schema}.claim($1, 'test', 10, NULL, false)`), id)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	const function = `ALTER FUNCTION {schema}.claim(text, text, int, int, boolean, boolean) `
	several(t, m.db, function+`SET enable_indexscan = off; `+function+`SET enable_seqscan = on`)
	claim("behind", "Seq Scan on ")
	several(t, m.db, function+`RESET enable_indexscan; `+function+`SET enable_seqscan = off`)
	several(t, m.db, `DROP INDEX {schema}.deliveries_due_idx`)
	claim("spilled", " rows, more than ")
	several(t, m.db, `CREATE INDEX deliveries_due_idx ON {schema}.deliveries (sub, next_at) WHERE state IN ('available', 'expired')`)
}
