package fastpubsub_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// ackHazards come from consumers that ack, nack or extend what others have, too, or what nobody has.
var ackHazards = []hazard{
	{
		name:        "a message acked by two transactions at once",
		protections: []protection{{"ack", "AND l.remaining = old;  -- protection: acked once", ";"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 4)...)
			ids := idsOf(consume(t, b, "s", 10))
			first := begin(t, db, pgx.TxOptions{})
			if n, err := b.AckTx(t.Context(), first, "s", ids[:3]); err != nil || n != 3 {
				return fmt.Errorf("first acked %d, %w", n, err)
			}
			var second int
			var g errgroup.Group
			g.Go(func() (err error) {
				second, err = b.Ack(t.Context(), "s", ids[1:])
				return err
			})
			waitForLockWaits(t, db, 1)
			commit(t, first)
			if err := g.Wait(); err != nil {
				return err
			}
			if second != 1 {
				return fmt.Errorf("the second acked %d, want 1", second)
			}
			return nil
		},
	},
	{
		name: "acks of the same leases in different orders",
		protections: []protection{
			{"ack", "keys := {schema}.find_leases(sub_num, current_slot, xids, los, his);", `
				SELECT array_agg(slot) AS slots, array_agg(kind) AS kinds, array_agg(first_xid) AS first_xids,
				       array_agg(first_seq) AS first_seqs, array_agg(remaining) AS remainings
				INTO keys
				FROM (SELECT u.* FROM {schema}.find_leases(sub_num, current_slot, xids, los, his) f,
				      unnest(f.slots, f.kinds, f.first_xids, f.first_seqs, f.remainings) u(slot, kind, first_xid, first_seq, remaining)
				      ORDER BY random()) r;`},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			// Leases of the main scan and of a late transaction, mixed.
			slow := begin(t, db, pgx.TxOptions{})
			publishTx(t, b, slow, "t", numbered(0, 60)...)
			publish(t, b, "t", numbered(60, 60)...)
			var ids []fastpubsub.ID
			for range 60 {
				ids = append(ids, idsOf(consume(t, b, "s", 1))...)
			}
			commit(t, slow)
			for range 60 {
				ids = append(ids, idsOf(consume(t, b, "s", 1))...)
			}
			// One lease in the middle is locked until all wait, each with the leases before it in hand.
			holder := begin(t, db, pgx.TxOptions{})
			_, err := holder.Exec(t.Context(), db.SQL(`SELECT FROM {schema}.leases ORDER BY kind, first_xid, first_seq OFFSET 60 LIMIT 1 FOR UPDATE`))
			if err != nil {
				return err
			}
			counts := make([]int, 8)
			g, ctx := errgroup.WithContext(t.Context())
			for i := range counts {
				mine := slices.Clone(ids)
				if i%2 == 1 {
					slices.Reverse(mine)
				}
				g.Go(func() (err error) {
					counts[i], err = b.Ack(ctx, "s", mine)
					return err
				})
			}
			waitForLockWaits(t, db, len(counts))
			commit(t, holder)
			if err := g.Wait(); err != nil {
				return err
			}
			total := 0
			for _, n := range counts {
				total += n
			}
			if total != 120 {
				return fmt.Errorf("acked %d messages of 120", total)
			}
			return nil
		},
	},
	{
		name:        "an ack that finds its lease swept",
		protections: []protection{{"ack", "IF acked = upper(wanted) - lower(wanted) OR", "IF true OR"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 3)...)
			ids := idsOf(consume(t, b, "s", 10))
			move(time.Hour)
			tx := begin(t, db, pgx.TxOptions{})
			if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'other', 0, NULL, false)`)); err != nil {
				return err
			}
			var n int
			var g errgroup.Group
			g.Go(func() (err error) {
				n, err = b.Ack(t.Context(), "s", ids)
				return err
			})
			waitForLockWaits(t, db, 1)
			commit(t, tx)
			if err := g.Wait(); err != nil || n != 3 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			return wantDelivered(t, b, "s", 10)
		},
	},
	{
		name: "a consumer whose lease has run out gives back what others have",
		protections: []protection{
			{"move_leased", "AND l.remaining = old AND l.deadline > now_at  -- protection: not after the deadline", "AND l.remaining = old"},
			{"move_leased", "AND (coalesce(r.attempt, 0) = 0 OR d.attempts = r.attempt)  -- protection: the current attempt", ""},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 3)...)
			old := consume(t, b, "s", 10)
			move(time.Hour)
			for range 2 { // before and after somebody else has them
				if n, err := b.Nack(t.Context(), "s", deliveriesOf(old), fastpubsub.NackOptions{}); err != nil || n != 0 {
					return fmt.Errorf("nacked %d, %w", n, err)
				}
				if n, err := b.Extend(t.Context(), "s", deliveriesOf(old), time.Minute); err != nil || n != 0 {
					return fmt.Errorf("extended %d, %w", n, err)
				}
				consume(t, b, "s", 10)
			}
			return nil
		},
	},
	{
		name:        "a nack of an id that was never given out",
		protections: []protection{{"move_leased", "AND m.xid = r.xid AND m.base >= r.lo & ~65535::bigint", "AND m.xid >= r.xid AND m.base >= r.lo & ~65535::bigint"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 2)...)
			publish(t, b, "t", numbered(2, 1)...)
			waitForOpen(t, db)
			msgs := consume(t, b, "s", 10) // by one lease, for messages of two transactions
			made := msgs[2].Delivery
			copy(made.ID[:8], msgs[0].ID[:8]) // the transaction of another message, with the seq of this one
			if n, err := b.Nack(t.Context(), "s", []fastpubsub.Delivery{made}, fastpubsub.NackOptions{}); err != nil || n != 0 {
				return fmt.Errorf("nacked %d, %w", n, err)
			}
			if n, err := b.Ack(t.Context(), "s", idsOf(msgs)); err != nil || n != 3 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			return nil
		},
	},
}
