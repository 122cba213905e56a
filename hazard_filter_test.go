package fastpubsub_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// noTimeBound lets a filter look at messages for as long as it takes.
var noTimeBound = protection{"filter_ranges", "EXIT WHEN clock_timestamp() > until;", "NULL;"}

// filterHazards come from what a filter looks at.
var filterHazards = []hazard{
	{
		name:        "a payload that does not cast to jsonb, under a filter",
		protections: []protection{{"filter_ranges", "guarded := true;", "RAISE;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", `{"n":[0,1,2,3]}`)
			before := publish(t, b, "t", numbered(0, 2)...)
			// Publish refuses such a thing; this is the engine's second line.
			var xid, base int64
			err := db.Pool.QueryRow(t.Context(), db.SQL(`SELECT r[1], r[3] FROM {schema}.publish('t', $1, NULL) r`),
				[]string{`{"n":0}`, `{"n":"\u0000"}`, `no JSON`}).Scan(&xid, &base)
			if err != nil {
				return err
			}
			good := query[pgtype.UUID](t, db, `SELECT {schema}.message_id($1, $2)`, xid, base)
			after := publish(t, b, "t", numbered(2, 2)...)
			return wantDelivered(t, b, "s", 10, append(append(before, good.Bytes), after...)...)
		},
	},
	{
		name: "a filter that matches nothing",
		protections: []protection{{"claim", "                new_xid := taken.end_xid;\n                new_seq := taken.end_seq;",
			"IF cardinality(taken.xids) > 0 THEN new_xid := taken.end_xid; new_seq := taken.end_seq; END IF;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", `{"n":["none"]}`)
			for range 3 {
				publish(t, b, "t", numbered(0, 4000)...)
			}
			if err := wantDelivered(t, b, "s", 10); err != nil {
				return err
			}
			behind := query[int](t, db, `SELECT count(*) FROM {schema}.messages
				WHERE (xid, base) > (SELECT xid, seq FROM {schema}.cursors ORDER BY gen DESC LIMIT 1)`)
			if behind > 0 {
				return fmt.Errorf("%d record batches will be looked at again", behind)
			}
			return nil
		},
	},
	{
		name:        "more messages than a filter looks at in one claim",
		protections: []protection{{"scan_main", "whole := whole AND coalesce(examined, 0) < budget;", "whole := whole AND true;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			takeOut(t, db, noTimeBound) // on a slow machine it would end the claim first
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", `{"n":[1]}`)
			for range 21 {
				publish(t, b, "t", numbered(1, 1000)...) // the first of them is let through
			}
			_, err := claimLeavesNothing(t, db, "s", 100)
			return err
		},
	},
	{
		name:        "payloads so large that a filter takes long to look at them",
		protections: []protection{noTimeBound},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", `{"n":[1]}`)
			large := fastpubsub.NewMessage{Payload: fmt.Appendf(nil, `{"a":[%s0]}`, bytes.Repeat([]byte("1,"), 1<<19))}
			for range 40 {
				publish(t, b, "t", large)
			}
			wanted := publish(t, b, "t", numbered(1, 1)...)
			var outcome string
			conn, err := db.Pool.Acquire(t.Context())
			if err != nil {
				return err
			}
			defer conn.Release()
			err = conn.QueryRow(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'test', 10, NULL, false)`)).Scan(&outcome)
			if err != nil || outcome != "more" {
				return fmt.Errorf("a claim over 40 MiB returned %q, %w; want \"more\"", outcome, err)
			}
			msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Wait: 30 * time.Second})
			if err != nil || !slices.Equal(idsOf(msgs), wanted) {
				return fmt.Errorf("got %v, %w, want %v", idsOf(msgs), err, wanted)
			}
			return nil
		},
	},
}
