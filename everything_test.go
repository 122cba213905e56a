package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestEverythingAtOnce runs all operations at once, from many connections, on a few subscriptions whose leases run out all
// the time. There must be no deadlock, no wait for a lock beyond a bound, no error but those that are documented, and in the
// end every message is acked once, by a call that said so, or a dead letter.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	const lockTimeout = 5 * time.Second // of callers' transactions none lasts a tenth of it
	duration := time.Minute
	if testing.Short() {
		duration = 5 * time.Second
	}
	_, db := storetest.NewServer(t, map[string]string{
		"deadlock_timeout": "10ms", "fsync": "off", "full_page_writes": "off", "max_connections": "100"})
	config := db.Pool.Config()
	config.MaxConns = 40
	config.ConnConfig.RuntimeParams["lock_timeout"] = fmt.Sprint(lockTimeout.Milliseconds())
	b, pool := brokerOn(t, db.Schema, config)

	createTopic(t, b, "t")
	subs := []string{"all", "odd", "single"}
	for _, id := range subs {
		sub := fastpubsub.Subscription{ID: id, TopicID: "t", SubscriptionSettings: fastpubsub.SubscriptionSettings{
			MaxDeliveryAttempts: 4, BackoffMin: time.Second, BackoffMax: 2 * time.Second, AckDeadline: time.Second}}
		if id == "odd" {
			if err := sub.Filter.UnmarshalJSON([]byte(`{"odd":[true]}`)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.CreateSubscription(t.Context(), sub); err != nil {
			t.Fatal(err)
		}
	}
	l := &everything{acked: map[string]map[fastpubsub.ID]int{}, purged: map[string]int{}, committed: map[fastpubsub.ID]bool{}}
	for _, id := range subs {
		l.acked[id] = map[fastpubsub.ID]int{}
	}

	ends := time.Now().Add(duration)
	g, ctx := errgroup.WithContext(t.Context())
	repeat := func(name string, seed int, f func(rng *rand.Rand) error) {
		rng := rand.New(rand.NewPCG(uint64(seed), 3))
		g.Go(func() error {
			for time.Now().Before(ends) && ctx.Err() == nil {
				if err := f(rng); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			return nil
		})
	}
	for i := range 3 {
		repeat("publish", i, func(rng *rand.Rand) error {
			odd, err := publishSomehow(ctx, b, pool, rng)
			l.mu.Lock()
			maps.Copy(l.committed, odd)
			l.mu.Unlock()
			pause(ctx, rng, 20*time.Millisecond)
			return err
		})
	}
	for i, id := range subs {
		for j := range 4 {
			repeat("consume "+id, 10*i+j, func(rng *rand.Rand) error { return l.consume(ctx, b, pool, id, rng) })
		}
		repeat("dead letters "+id, 100+i, func(rng *rand.Rand) error {
			letters, err := b.DeadLetters(ctx, id, fastpubsub.ListOptions{Limit: 50})
			if err != nil {
				return err
			}
			var ids []fastpubsub.ID
			for _, letter := range letters {
				ids = append(ids, letter.ID)
			}
			half := len(ids) / 2
			if _, err := b.Reprocess(ctx, id, ids[half:]); err != nil {
				return err
			}
			n, err := b.Purge(ctx, id, ids[:half/2])
			l.mu.Lock()
			l.purged[id] += n
			l.mu.Unlock()
			pause(ctx, rng, 200*time.Millisecond)
			return err
		})
		repeat("metrics "+id, 200+i, func(rng *rand.Rand) error {
			_, err := b.Metrics(ctx, id)
			pause(ctx, rng, 200*time.Millisecond)
			return err
		})
	}
	for i := range 2 {
		repeat("cleanup", 300+i, func(rng *rand.Rand) error {
			_, err := b.CleanupStuck(ctx)
			pause(ctx, rng, 100*time.Millisecond)
			return err
		})
	}
	repeat("delete and create", 400, func(rng *rand.Rand) error {
		sub := fastpubsub.Subscription{ID: "short-lived", TopicID: "t", SubscriptionSettings: fastpubsub.SubscriptionSettings{AckDeadline: time.Second}}
		if _, err := b.CreateSubscription(ctx, sub); err != nil {
			return err
		}
		pause(ctx, rng, 500*time.Millisecond)
		return b.DeleteSubscription(ctx, "short-lived")
	})
	for i := range 2 {
		repeat("consume what is deleted", 500+i, func(rng *rand.Rand) error {
			msgs, err := b.Consume(ctx, "short-lived", fastpubsub.ConsumeOptions{Consumer: "test", Max: 50})
			if err == nil {
				_, err = b.Nack(ctx, "short-lived", deliveriesOf(msgs), fastpubsub.NackOptions{Immediate: true})
			}
			return ignore(err, fastpubsub.ErrNotFound, fastpubsub.ErrBusy)
		})
	}
	// Slots are left, moved out of and emptied all the time, but their leases are given a moment to end by themselves.
	maintained, err := fastpubsub.New(pool, fastpubsub.Config{
		Schema: db.Schema, Maintenance: fastpubsub.MaintenanceSettings{SpillAfter: time.Second, Patience: time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	var emptied atomic.Int64
	for i := range 2 {
		repeat("maintenance", 600+i, func(rng *rand.Rand) error {
			freed, err := maintained.CleanupAcked(ctx, time.Duration(rng.IntN(1000))*time.Millisecond)
			emptied.Add(int64(freed.Slots))
			pause(ctx, rng, 100*time.Millisecond)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) {
			t.Logf("DETAIL %s WHERE %s", pgErr.Detail, pgErr.Where)
		}
		t.Fatal(err)
	}
	if n := query[int](t, db, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); n > 0 {
		t.Errorf("%d deadlocks", n)
	}
	t.Logf("%d messages committed, %d slots emptied; %d acked in transactions, %d nacked, %d extended, %d given back, %d abandoned",
		len(l.committed), emptied.Load(), l.ackedTx.Load(), l.nacked.Load(), l.extended.Load(), l.givenBack.Load(), l.abandoned.Load())
	for _, id := range subs {
		l.audit(t, b, id)
	}
}

// everything is what callers were told.
type everything struct {
	mu        sync.Mutex // protects the maps
	committed map[fastpubsub.ID]bool
	acked     map[string]map[fastpubsub.ID]int
	purged    map[string]int

	ackedTx, nacked, extended, givenBack, abandoned atomic.Int64
}

func ignore(err error, known ...error) error {
	for _, k := range known {
		if errors.Is(err, k) {
			return nil
		}
	}
	return err
}

// pause waits for somewhat less than most.
func pause(ctx context.Context, rng *rand.Rand, most time.Duration) {
	select {
	case <-time.After(time.Duration(rng.Int64N(int64(most)))):
	case <-ctx.Done():
	}
}

// consume takes some messages and does something with each part of them.
func (l *everything) consume(ctx context.Context, b *fastpubsub.Broker, pool *pgxpool.Pool, sub string, rng *rand.Rand) error {
	msgs, err := b.Consume(ctx, sub, fastpubsub.ConsumeOptions{Consumer: "test", Max: 1 + rng.IntN(100), Single: sub == "single"})
	if err != nil {
		return ignore(err, fastpubsub.ErrBusy)
	}
	for len(msgs) > 0 {
		n := 1 + rng.IntN(len(msgs))
		part := msgs[:n]
		msgs = msgs[n:]
		for _, m := range part {
			if m.DeliveryAttempts < 1 || m.DeliveryAttempts > 4 {
				return fmt.Errorf("delivery %d of %v", m.DeliveryAttempts, m.ID)
			}
		}
		rng.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
		var done int
		switch rng.IntN(8) {
		case 0:
			l.abandoned.Add(int64(len(part)))
		case 1:
			done, err = b.Nack(ctx, sub, deliveriesOf(part), fastpubsub.NackOptions{Immediate: rng.IntN(2) == 0, Error: "test"})
			l.nacked.Add(int64(done))
		case 2:
			done, err = b.Extend(ctx, sub, deliveriesOf(part), time.Second)
			l.extended.Add(int64(done))
		case 3:
			done, err = b.Extend(ctx, sub, deliveriesOf(part), 0)
			l.givenBack.Add(int64(done))
		case 4: // one by one
			for _, m := range part {
				n, err := b.Ack(ctx, sub, []fastpubsub.ID{m.ID})
				if err != nil {
					return err
				}
				l.mu.Lock()
				l.acked[sub][m.ID] += n
				l.mu.Unlock()
			}
		default:
			err = l.inTx(ctx, b, pool, sub, part, rng)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inTx acks or nacks in a transaction that stays open for a while, and may roll back. Of a batch the count alone tells what was
// acked, so it acks all or nothing.
func (l *everything) inTx(ctx context.Context, b *fastpubsub.Broker, pool *pgxpool.Pool, sub string, msgs []fastpubsub.Message, rng *rand.Rand) error {
	undo := errors.New("roll back")
	ack := rng.IntN(2) == 0
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if ack {
			n, err := b.AckTx(ctx, tx, sub, idsOf(msgs))
			if err != nil {
				return err
			}
			if n < len(msgs) { // others have some of them by now
				return undo
			}
		} else if _, err := b.NackTx(ctx, tx, sub, deliveriesOf(msgs), fastpubsub.NackOptions{Immediate: true}); err != nil {
			return err
		}
		pause(ctx, rng, 50*time.Millisecond)
		if rng.IntN(3) == 0 {
			return undo
		}
		return nil
	})
	if err == nil && ack {
		l.ackedTx.Add(int64(len(msgs)))
		l.mu.Lock()
		for _, m := range msgs {
			l.acked[sub][m.ID]++
		}
		l.mu.Unlock()
	}
	return ignore(err, undo)
}

// audit drains a subscription and accounts for every message.
func (l *everything) audit(t *testing.T, b *fastpubsub.Broker, sub string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		m, err := b.Metrics(t.Context(), sub)
		if err != nil {
			t.Fatal(err)
		}
		if m.Available+m.Delivered == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not drain: %+v", sub, m)
		}
		msgs, err := b.Consume(t.Context(), sub, fastpubsub.ConsumeOptions{Consumer: "auditor", Max: 1000, Wait: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		n, err := b.Ack(t.Context(), sub, idsOf(msgs))
		if err != nil || n != len(msgs) {
			t.Fatalf("%s: acked %d of %d, %v", sub, n, len(msgs), err)
		}
		for _, msg := range msgs {
			l.acked[sub][msg.ID]++
		}
	}
	m, err := b.Metrics(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	wanted, got, twice, foreign := 0, 0, 0, 0
	for _, odd := range l.committed {
		if sub != "odd" || odd {
			wanted++
		}
	}
	for id, n := range l.acked[sub] {
		odd, ok := l.committed[id]
		if n > 0 && (!ok || sub == "odd" && !odd) {
			foreign++
		}
		if n > 1 {
			twice++
		}
		got += min(n, 1)
	}
	lost := wanted - got - int(m.DeadLetters) - l.purged[sub]
	if lost != 0 || twice+foreign > 0 || m.Acked != int64(got) {
		t.Errorf("%s: of %d messages %d are lost, %d were acked twice, %d should not have come; acked %d, the engine says %d",
			sub, wanted, lost, twice, foreign, got, m.Acked)
	}
	t.Logf("%s: %d messages, %d acked, %d dead, %d purged", sub, wanted, got, m.DeadLetters, l.purged[sub])
}
