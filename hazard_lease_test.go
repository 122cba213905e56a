package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// leaseHazards come from locks, deadlines and clocks.
var leaseHazards = []hazard{
	{
		name:        "a lock that is waited for longer than a deadline is long",
		protections: []protection{{"claim", "now_at := {schema}.clock();", "now_at := now();"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 1)...)
			tx := begin(t, db, pgx.TxOptions{})
			if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'other', 0, NULL, false)`)); err != nil {
				return err
			}
			var g errgroup.Group
			g.Go(func() error {
				_, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", AckDeadline: time.Second})
				return err
			})
			waitForLockWaits(t, db, 1)
			var released time.Time
			if err := tx.QueryRow(t.Context(), `SELECT clock_timestamp() FROM pg_sleep(0.3)`).Scan(&released); err != nil {
				return err
			}
			commit(t, tx)
			if err := g.Wait(); err != nil {
				return err
			}
			deadline := query[time.Time](t, db, `SELECT deadline FROM {schema}.leases`)
			if left := deadline.Sub(released); left < time.Second {
				return fmt.Errorf("%v are left of the second", left)
			}
			return nil
		},
	},
	{
		name:        "a subscription deleted while a consumer waits for it",
		protections: []protection{{"claim", "IF NOT FOUND THEN  -- deleted while we waited\n        RETURN 'no_subscription';", "IF NOT FOUND THEN RETURN 'ok';"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			tx := begin(t, db, pgx.TxOptions{})
			if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.claim('s', 'other', 0, NULL, false)`)); err != nil {
				return err
			}
			var g errgroup.Group
			var got error
			g.Go(func() error {
				_, got = b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test"})
				return nil
			})
			waitForLockWaits(t, db, 1)
			if err := within(t, "delete", func(ctx context.Context) error { return b.DeleteSubscription(ctx, "s") }); err != nil {
				return err
			}
			commit(t, tx)
			g.Wait()
			if !errors.Is(got, fastpubsub.ErrNotFound) {
				return fmt.Errorf("consume returned %v, want %v", got, fastpubsub.ErrNotFound)
			}
			return nil
		},
	},
	{
		name: "a lease whose row somebody has locked when it runs out",
		protections: []protection{
			{"sweep_leases", "FOR UPDATE SKIP LOCKED  -- protection: wait for nobody", "FOR UPDATE"},
			{"sweep_leases", "(k.i = ANY (got.numbers)) IS NOT TRUE;  -- protection: held", "false;"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 3)...)
			held := idsOf(consume(t, b, "s", 1))
			consume(t, b, "s", 10)
			tx := begin(t, db, pgx.TxOptions{})
			if n, err := b.AckTx(t.Context(), tx, "s", held); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			move(time.Hour)
			err := within(t, "consume", func(ctx context.Context) error {
				msgs, err := b.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "test"})
				if err == nil && !slices.Equal(idsOf(msgs), ids[1:]) {
					err = fmt.Errorf("got %v, want %v", idsOf(msgs), ids[1:])
				}
				return err
			})
			if err != nil {
				return err
			}
			if err := tx.Rollback(t.Context()); err != nil {
				return err
			}
			move(time.Second)
			return wantDelivered(t, b, "s", 10, held...)
		},
	},
	{
		name:        "more leases held than one look takes",
		protections: []protection{{"sweep_leases", "FOR UPDATE SKIP LOCKED\n        ) l\n        WHERE h.sub = sub_num", "LIMIT 1\n        ) l\n        WHERE h.sub = sub_num"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 1100)...)
			take := func(n int) {
				msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: n, Single: true})
				if err != nil || len(msgs) != n {
					t.Fatalf("%d messages came: %v", len(msgs), err)
				}
			}
			take(1000)
			take(100)
			lock := func(where string) pgx.Tx {
				tx := begin(t, db, pgx.TxOptions{})
				if _, err := tx.Exec(t.Context(), db.SQL(`SELECT FROM {schema}.leases WHERE `+where+` FOR UPDATE`)); err != nil {
					t.Fatal(err)
				}
				return tx
			}
			const from = `(SELECT first_seq FROM {schema}.leases ORDER BY first_seq OFFSET 1000 LIMIT 1)`
			kept := lock(`first_seq < ` + from)
			freed := lock(`first_seq >= ` + from)
			move(time.Hour)
			for range 11 {
				exec(t, db, `SELECT {schema}.claim('s', 'other', 0, NULL, false)`)
			}
			if n := query[int](t, db, `SELECT count(*) FROM {schema}.held_leases`); n != len(ids) {
				return fmt.Errorf("%d leases are held, want %d", n, len(ids))
			}
			commit(t, freed)
			defer commit(t, kept)
			return wantDelivered(t, b, "s", 1000, ids[1000:]...)
		},
	},
	{
		name:        "a clock that steps back behind what was swept",
		protections: []protection{{"claim", "now_at := greatest(now_at, state.swept_to);", "NULL;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 2)...)
			first := idsOf(consume(t, b, "s", 10))
			if n, err := b.Ack(t.Context(), "s", first[1:]); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			first = first[:1]
			move(24 * time.Hour)
			if err := wantDelivered(t, b, "s", 10, first...); err != nil {
				return err
			}
			if n, err := b.Ack(t.Context(), "s", first); err != nil || n != 1 {
				return fmt.Errorf("acked %d, %w", n, err)
			}
			move(-24 * time.Hour)
			second := publish(t, b, "t", numbered(2, 1)...)
			if err := wantDelivered(t, b, "s", 10, second...); err != nil {
				return err
			}
			move(48 * time.Hour)
			if err := wantDelivered(t, b, "s", 10, second...); err != nil {
				return err
			}
			if m, err := b.Metrics(t.Context(), "s"); err != nil || m.Acked != 2 {
				return fmt.Errorf("%d messages were acked, want 2; %w", m.Acked, err)
			}
			return nil
		},
	},
	{
		name:        "a dead letter that is reprocessed while the clock is behind what was handed out",
		protections: []protection{{"claim", "due_since := {schema}.due_from(state.due_to, state.full_at, now_at);", "due_since := {schema}.due_from(state.due_to, state.full_at, greatest(now_at, state.swept_to));"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 1)...)
			consume(t, b, "s", 10)
			move(24 * time.Hour)
			again := consume(t, b, "s", 10)
			if n, err := b.Nack(t.Context(), "s", deliveriesOf(again), fastpubsub.NackOptions{DeadLetter: true}); err != nil || n != 1 {
				return fmt.Errorf("nacked %d, %w", n, err)
			}
			move(-30 * time.Minute)
			if n, err := b.Reprocess(t.Context(), "s", ids); err != nil || n != 1 {
				return fmt.Errorf("reprocessed %d, %w", n, err)
			}
			if got := idsOf(consume(t, b, "s", 10)); !slices.Equal(got, ids) {
				return fmt.Errorf("got %v, want %v", got, ids)
			}
			return nil
		},
	},
	{
		name: "a delay and a deadline that begin while the clock is behind what was swept",
		protections: []protection{
			{"move_leased", "now_at := greatest(now_at, swept_to);", "NULL;"},
			{"look", "greatest(now_at, c.swept_to) AS now_at", "now_at AS now_at"},
		},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publish(t, b, "t", numbered(0, 3)...)
			consume(t, b, "s", 10)
			move(24 * time.Hour)
			again := consume(t, b, "s", 10)
			move(-12 * time.Hour)
			if n, err := b.Nack(t.Context(), "s", deliveriesOf(again[:1]), fastpubsub.NackOptions{Delay: 10 * time.Minute}); err != nil || n != 1 {
				return fmt.Errorf("nacked %d, %w", n, err)
			}
			if n, err := b.Extend(t.Context(), "s", deliveriesOf(again[1:2]), 10*time.Minute); err != nil || n != 1 {
				return fmt.Errorf("extended %d, %w", n, err)
			}
			if err := wantDelivered(t, b, "s", 10); err != nil {
				return fmt.Errorf("early: %w", err)
			}
			if n, err := b.Extend(t.Context(), "s", deliveriesOf(again[2:]), 0); err != nil || n != 1 {
				return fmt.Errorf("gave back %d, %w", n, err)
			}
			if !query[bool](t, db, `SELECT due_in_seconds <= 0 FROM {schema}.look(ARRAY['s'])`) {
				return errors.New("a look does not find what was given back")
			}
			if err := wantDelivered(t, b, "s", 10, again[2].ID); err != nil {
				return fmt.Errorf("given back: %w", err)
			}
			move(12*time.Hour + 10*time.Minute)
			return wantDelivered(t, b, "s", 10, idsOf(again)...)
		},
	},
	{
		name:        "a thousand leases that run out at once",
		protections: []protection{{"sweep_leases", "WHERE l.messages - l.own < max_messages;", "WHERE true;"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			move := stopClock(t, db)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 900)...)
			for range 9 {
				consume(t, b, "s", 100)
				move(time.Millisecond)
			}
			move(time.Hour)
			exec(t, db, `SELECT {schema}.claim('s', 'other', 0, NULL, false)`)
			if n := query[int](t, db, `SELECT count(*) FROM {schema}.deliveries`); n != 100 {
				return fmt.Errorf("one call moved %d messages, want 100", n)
			}
			return wantDelivered(t, b, "s", 100, ids...)
		},
	},
}
