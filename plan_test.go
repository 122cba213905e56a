package fastpubsub_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestPlans lets a session make its plans while the tables are empty, which is when plans are at their worst, fills the
// tables, vacuums some, and then looks at how much the same session reads for each operation. That must not grow with the
// tables: a plan that reads a subscription's leases, or sorts its backlog, reads hundreds of times as much.
func TestPlans(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		reason string
		filter string
		spoil  string // what happens to statistics
		empty  bool   // slots are left, analyzed and emptied
	}{
		{reason: "never analyzed", filter: noFilter, spoil: `SELECT 1`},
		{reason: "analyzed when full", filter: noFilter, spoil: `ANALYZE`},
		{reason: "vacuumed partitions", filter: noFilter, spoil: `VACUUM ANALYZE {schema}.messages, {schema}.leases, {schema}.cursors, {schema}.deliveries`},
		{reason: "with a filter", filter: `{"keep":[true]}`, spoil: `SELECT 1`},
		{reason: "truncated slots", filter: noFilter, spoil: `VACUUM ANALYZE {schema}.messages, {schema}.leases, {schema}.cursors, {schema}.deliveries`, empty: true},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			t.Parallel()
			b, db := newBroker(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", tt.filter)
			conn, err := pgx.Connect(t.Context(), db.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			msg := fastpubsub.NewMessage{Payload: []byte(`{"keep":true}`)}
			measure := func() map[string]int {
				publish(t, b, "t", msg)
				buffers := map[string]int{}
				explain := func(name, sql string, args ...any) {
					buffers[name] = buffersRead(t, db, conn, sql, args...)
				}
				explain("publish", `SELECT {schema}.publish('t', ARRAY['{"keep":true}'], NULL)`)
				explain("claim", `SELECT {schema}.claim('s', 'test', 10, NULL, false)`)
				explain("claimed", `SELECT * FROM {schema}.claimed()`)
				var xid, seq int64
				err := conn.QueryRow(t.Context(), db.SQL(`SELECT last_xid, last_seq FROM {schema}.leases ORDER BY first_xid DESC, first_seq DESC LIMIT 1`)).Scan(&xid, &seq)
				if err != nil {
					t.Fatal(err)
				}
				explain("ack", `SELECT {schema}.ack('s', ARRAY[$1::bigint], ARRAY[$2::bigint], ARRAY[$2 + 1])`, xid, seq)
				explain("ack again", `SELECT {schema}.ack('s', ARRAY[$1::bigint], ARRAY[$2::bigint], ARRAY[$2 + 1])`, xid, seq)

				publish(t, b, "t", msg)
				consume(t, b, "s", 1)
				if err := conn.QueryRow(t.Context(), db.SQL(`SELECT last_xid, last_seq FROM {schema}.leases ORDER BY first_xid DESC, first_seq DESC LIMIT 1`)).Scan(&xid, &seq); err != nil {
					t.Fatal(err)
				}
				explain("ack of one", `SELECT {schema}.ack_one('s', $1, $2)`, xid, seq)
				explain("ack of one again", `SELECT {schema}.ack_one('s', $1, $2)`, xid, seq)

				publish(t, b, "t", msg)
				id := consume(t, b, "s", 1)[0].ID
				if err := conn.QueryRow(t.Context(), db.SQL(`SELECT last_xid, last_seq FROM {schema}.leases ORDER BY first_xid DESC, first_seq DESC LIMIT 1`)).Scan(&xid, &seq); err != nil {
					t.Fatal(err)
				}
				explain("nack", `SELECT {schema}.nack('s', ARRAY[$1::bigint], ARRAY[$2::bigint], ARRAY[$2 + 1], ARRAY[1], 0, 'no luck')`, xid, seq)
				look := func() { exec(t, db, `UPDATE {schema}.cursors SET due_to = '-infinity'`) } // now, not within 100 ms
				look()
				explain("claim of what is due", `SELECT {schema}.claim('s', 'test', 1, NULL, false)`)
				explain("claimed of what was due", `SELECT * FROM {schema}.claimed()`)
				explain("extend", `SELECT {schema}.extend('s', ARRAY[$1::bigint], ARRAY[$2::bigint], ARRAY[$2 + 1], ARRAY[2], 600)`, xid, seq)
				explain("nack again", `SELECT {schema}.nack('s', ARRAY[$1::bigint], ARRAY[$2::bigint], ARRAY[$2 + 1], ARRAY[2], 0, NULL)`, xid, seq)
				look()
				if got := consume(t, b, "s", 1); len(got) != 1 || got[0].ID != id {
					t.Fatalf("%v comes, want %v", got, id)
				}
				explain("ack of a redelivery", `SELECT {schema}.ack('s', ARRAY[$1::bigint], ARRAY[$2::bigint], ARRAY[$2 + 1])`, xid, seq)
				explain("sweep", `SELECT {schema}.sweep('s')`)
				return buffers
			}
			// What is read the first time, or after somebody else has changed a catalog, does not count.
			median := func() map[string]int {
				all := map[string][]int{}
				for range 11 {
					for name, n := range measure() {
						all[name] = append(all[name], n)
					}
				}
				median := map[string]int{}
				for name, n := range all {
					slices.Sort(n)
					median[name] = n[len(n)/2]
				}
				return median
			}
			before := median()

			for range 20 {
				publish(t, b, "t", fill(500, msg)...)
			}
			for more := true; more; { // a lease for each
				msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: 1000, Single: true})
				if err != nil {
					t.Fatal(err)
				}
				more = len(msgs) > 0
				// Half of them fail, and come again in an hour.
				if _, err := b.Nack(t.Context(), "s", deliveriesOf(msgs[:len(msgs)/2]), fastpubsub.NackOptions{Delay: time.Hour}); err != nil {
					t.Fatal(err)
				}
			}
			exec(t, db, `INSERT INTO {schema}.topics (id) SELECT 'other' || i FROM generate_series(1, 3000) i`)
			if tt.empty {
				emptied(t, maintainedBroker(t, db), db)
			}
			exec(t, db, tt.spoil)
			after := median()
			t.Logf("buffers before %v, after %v", before, after)
			for name, n := range after {
				if limit := 2*before[name] + 40; n > limit {
					t.Errorf("%s reads %d buffers, %d when the tables were empty", name, n, before[name])
				}
			}
		})
	}
}

func fill(n int, msg fastpubsub.NewMessage) []fastpubsub.NewMessage {
	msgs := make([]fastpubsub.NewMessage, n)
	for i := range msgs {
		msgs[i] = msg
	}
	return msgs
}

// buffersRead runs a statement and returns how many buffers it touched, inside functions too.
func buffersRead(t testing.TB, db *storetest.DB, conn *pgx.Conn, sql string, args ...any) int {
	t.Helper()
	var text string
	err := conn.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) `+db.SQL(sql), args...).Scan(&text)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", sql, err))
	}
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	if err := json.Unmarshal([]byte(text), &plans); err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan.Hit + plans[0].Plan.Read
}
