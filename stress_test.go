package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
)

// TestConcurrentPublishersAndConsumers lets publishers commit out of order, roll back, use savepoints and every isolation
// level, while consumers of several subscriptions take and ack batches of all sizes. Every committed message must be
// delivered once to each subscription, and no other.
func TestConcurrentPublishersAndConsumers(t *testing.T) {
	t.Parallel()
	const (
		publishers   = 8
		consumers    = 3 // of each subscription
		transactions = 60
	)
	b, db := newBroker(t, func(c *pgxpool.Config) { c.MaxConns = 40 })
	createTopic(t, b, "t")
	filters := map[string]string{"all": noFilter, "odd": `{"odd":[true]}`, "single": noFilter}
	for id, filter := range filters {
		createSubscription(t, b, id, "t", filter)
	}

	var mu sync.Mutex // protects committed
	committed := map[fastpubsub.ID]bool{}
	var publishing atomic.Int32
	publishing.Store(publishers)

	g, ctx := errgroup.WithContext(t.Context())
	for p := range publishers {
		rng := rand.New(rand.NewPCG(1, uint64(p)))
		g.Go(func() error {
			defer publishing.Add(-1)
			for range transactions {
				odd, err := publishSomehow(ctx, b, db.Pool, rng)
				if err != nil {
					return fmt.Errorf("publish: %w", err)
				}
				mu.Lock()
				for id, isOdd := range odd {
					committed[id] = isOdd
				}
				mu.Unlock()
			}
			return nil
		})
	}

	// Meanwhile slots are left as soon as there is something in them, and emptied as soon as possible.
	maintained := maintainedBroker(t, db)
	var freed atomic.Int64
	for range 2 {
		g.Go(func() error {
			for publishing.Load() > 0 {
				f, err := maintained.CleanupAcked(ctx, 0)
				freed.Add(int64(f.Slots))
				if err != nil {
					return err
				}
			}
			return nil
		})
	}

	delivered := map[string]map[fastpubsub.ID]int{}
	for id := range filters {
		delivered[id] = map[fastpubsub.ID]int{}
		for c := range consumers {
			rng := rand.New(rand.NewPCG(2, uint64(c)))
			g.Go(func() error {
				for {
					last := publishing.Load() == 0
					msgs, err := b.Consume(ctx, id, fastpubsub.ConsumeOptions{
						Consumer: fmt.Sprint(c), Max: 1 + rng.IntN(1+rng.IntN(100)), Single: id == "single"})
					if errors.Is(err, fastpubsub.ErrBusy) {
						continue
					}
					if err != nil {
						return err
					}
					if len(msgs) == 0 {
						if last {
							return nil
						}
						continue
					}
					mu.Lock()
					for _, m := range msgs {
						delivered[id][m.ID]++
					}
					mu.Unlock()
					ids := idsOf(msgs)
					rng.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
					for len(ids) > 0 {
						n := 1 + rng.IntN(len(ids))
						acked, err := b.Ack(ctx, id, ids[:n])
						if err != nil {
							return err
						}
						if acked != n {
							return fmt.Errorf("acked %d of %d", acked, n)
						}
						ids = ids[n:]
					}
				}
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}

	t.Logf("%d messages committed, %d slots emptied", len(committed), freed.Load())
	if freed.Load() == 0 {
		t.Error("no slot was emptied")
	}
	for sub, got := range delivered {
		// A consumer may have seen the end while another still held the lock for the last stretch.
		for _, id := range drain(t, b, sub, 100) {
			got[id]++
		}
		lost, twice, phantom := 0, 0, 0
		for id, odd := range committed {
			if wanted := sub != "odd" || odd; wanted && got[id] == 0 {
				lost++
			} else if got[id] > 1 {
				twice++
			}
		}
		for id := range got {
			if odd, ok := committed[id]; !ok || sub == "odd" && !odd {
				phantom++
			}
		}
		if lost+twice+phantom > 0 {
			t.Errorf("subscription %s: %d lost, %d delivered twice, %d phantom of %d", sub, lost, twice, phantom, len(committed))
		}
	}
}

// publishSomehow publishes in one transaction of a random kind and returns what was committed: for each id, whether the
// payload said odd.
func publishSomehow(ctx context.Context, b *fastpubsub.Broker, pool *pgxpool.Pool, rng *rand.Rand) (map[fastpubsub.ID]bool, error) {
	kept := map[fastpubsub.ID]bool{}
	publish := func(ctx context.Context, tx pgx.Tx) ([]fastpubsub.ID, error) {
		msgs := make([]fastpubsub.NewMessage, 1+rng.IntN(1+rng.IntN(30)))
		odd := make([]bool, len(msgs))
		for i := range msgs {
			odd[i] = rng.IntN(2) == 1
			msgs[i] = fastpubsub.JSON(map[string]any{"odd": odd[i]})
		}
		ids, err := b.PublishTx(ctx, tx, "t", msgs...)
		for i, id := range ids {
			kept[id] = odd[i]
		}
		return ids, err
	}
	levels := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}
	undo := errors.New("roll back")
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: levels[rng.IntN(len(levels))]}, func(tx pgx.Tx) error {
		for range 1 + rng.IntN(3) {
			if rng.IntN(3) > 0 {
				if _, err := publish(ctx, tx); err != nil {
					return err
				}
				continue
			}
			var ids []fastpubsub.ID
			err := pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
				var err error
				if ids, err = publish(ctx, savepoint); err == nil && rng.IntN(2) == 0 {
					err = undo
				}
				return err
			})
			if errors.Is(err, undo) {
				for _, id := range ids {
					delete(kept, id)
				}
			} else if err != nil {
				return err
			}
		}
		// Some transactions stay open for a while, so that others overtake them.
		if rng.IntN(3) == 0 {
			if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, rng.Float64()*0.05); err != nil {
				return err
			}
		}
		if rng.IntN(5) == 0 {
			return undo
		}
		return nil
	})
	if errors.Is(err, undo) {
		return nil, nil
	}
	return kept, err
}
