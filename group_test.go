package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
)

// TestPublishTogether lets many calls share statements: each gets the ids of its own messages, in order.
func TestPublishTogether(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createTopic(t, b, "other")
	createSubscription(t, b, "s", "t", noFilter)
	var mu sync.Mutex // protects want
	want := map[fastpubsub.ID]string{}
	var g errgroup.Group
	for p := range 40 {
		g.Go(func() error {
			for i := range 25 {
				var msgs []fastpubsub.NewMessage
				for j := range 1 + (p+i)%4 {
					msg := fastpubsub.JSON(fmt.Sprintf("%d %d %d", p, i, j))
					msg.Payload = []byte(fmt.Sprintf(`{"p":%s}`, msg.Payload))
					if (p+i+j)%5 == 0 {
						msg.Attributes = map[string]string{"a": strconv.Itoa(p)}
					}
					msgs = append(msgs, msg)
				}
				if p%10 == 9 {
					if _, err := b.Publish(t.Context(), "missing", msgs...); !errors.Is(err, fastpubsub.ErrNotFound) {
						return fmt.Errorf("publish to a missing topic returned %v", err)
					}
					if _, err := b.Publish(t.Context(), "other", msgs...); err != nil {
						return err
					}
					continue
				}
				ids, err := b.Publish(t.Context(), "t", msgs...)
				if err != nil || len(ids) != len(msgs) {
					return fmt.Errorf("published %d of %d, %w", len(ids), len(msgs), err)
				}
				mu.Lock()
				for k, id := range ids {
					want[id] = string(msgs[k].Payload) + msgs[k].Attributes["a"]
				}
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got := map[fastpubsub.ID]string{}
	for {
		msgs := consume(t, b, "s", 1000)
		if len(msgs) == 0 {
			break
		}
		for _, m := range msgs {
			got[m.ID] = string(m.Payload) + m.Attributes["a"]
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages by id (-published +consumed):\n%s", diff)
	}
	if n := query[int](t, db, `SELECT count(*) FROM {schema}.messages m JOIN {schema}.topics t ON t.num = m.topic_num AND t.id = 't'`); n > 36*25*9/10 {
		t.Errorf("%d calls made %d record batches: they do not gather", 36*25, n)
	}
}

// TestPublishTogetherIsBounded holds up all statements, and looks at the calls that wait behind them.
func TestPublishTogetherIsBounded(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t, func(c *pgxpool.Config) { c.MaxConns = 20 })
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	publish(t, b, "t", numbered(0, 1)...) // checks the schema
	lock := begin(t, db, pgx.TxOptions{})
	if _, err := lock.Exec(t.Context(), db.SQL(`LOCK TABLE {schema}.messages IN ACCESS EXCLUSIVE MODE`)); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	type answer struct {
		ids []fastpubsub.ID
		err error
	}
	var stay, leave [8]answer
	var staying, leaving sync.WaitGroup
	for i := range stay {
		staying.Go(func() { stay[i].ids, stay[i].err = b.Publish(t.Context(), "t", numbered(10+i, 1)...) })
		leaving.Go(func() { leave[i].ids, leave[i].err = b.Publish(cancelled, "t", numbered(100+i, 1)...) })
	}
	// They do not wait for the one that went first for ever.
	waitForLockWaits(t, db, 3)
	cancel()
	leaving.Wait()
	for i, a := range leave {
		if !errors.Is(a.err, context.Canceled) {
			t.Errorf("call %d, which was cancelled, returned %v", i, a.err)
		}
	}
	commit(t, lock)
	staying.Wait()
	want := map[fastpubsub.ID]string{}
	for i, a := range stay {
		if a.err != nil || len(a.ids) != 1 {
			t.Fatalf("call %d returned %v, %v", i, a.ids, a.err)
		}
		want[a.ids[0]] = fmt.Sprintf(`{"n":%d}`, 10+i)
	}
	got := map[fastpubsub.ID]string{}
	for {
		msgs := consume(t, b, "s", 100)
		if len(msgs) == 0 {
			break
		}
		for _, m := range msgs {
			// Of those that were cancelled some may have been published.
			if n := string(m.Payload); len(n) == len(`{"n":10}`) {
				got[m.ID] = n
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages by id (-published +consumed):\n%s", diff)
	}
}
