package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// bouncedConnections is how many connections to PgBouncer a pool has; they share storetest.PgBouncerConnections sessions.
const bouncedConnections = 16

// bounced is what a broker is asked to do through PgBouncer. The steps run in this order, on one broker, and each makes
// topics of its own. The first lists them all, so others go behind it.
var bounced = []struct {
	name string
	run  func(*testing.T, *fastpubsub.Broker, *pgxpool.Pool)
}{
	{"topics and subscriptions", bouncedTopics},
	{"transactions", bouncedTransactions},
	{"waiting", bouncedWaiting},
	{"all at once", bouncedAtOnce},
	{"failures", failurePath},
}

// TestPgBouncer works through PgBouncer in transaction mode, where each transaction may get another session, in the query
// modes that expect nothing of a session: no named statement, and no unnamed one in the next round trip.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	modes := map[string]pgx.QueryExecMode{"cache describe": pgx.QueryExecModeCacheDescribe,
		"exec": pgx.QueryExecModeExec, "simple protocol": pgx.QueryExecModeSimpleProtocol}
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := storetest.New(t)
			config, err := pgxpool.ParseConfig(storetest.NewPgBouncer(t, db))
			if err != nil {
				t.Fatal(err)
			}
			config.MinConns, config.MaxConns = bouncedConnections, bouncedConnections
			config.ConnConfig.DefaultQueryExecMode = mode
			b, pool := brokerOn(t, db.Schema, config)
			for _, step := range bounced {
				t.Run(step.name, func(t *testing.T) { step.run(t, b, pool) })
			}
		})
	}
}

func bouncedTopics(t *testing.T, b *fastpubsub.Broker, _ *pgxpool.Pool) {
	ctx := t.Context()
	if err := b.Check(ctx); err != nil {
		t.Error(err)
	}
	topic, err := b.CreateTopic(ctx, "admin")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.GetTopic(ctx, "admin"); err != nil || got != topic {
		t.Errorf("got %v, %v, want %v", got, err, topic)
	}
	createSubscription(t, b, "admin", "admin", `{"odd":[true]}`)
	sub, err := b.GetSubscription(ctx, "admin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateTopic(ctx, "admin"); !errors.Is(err, fastpubsub.ErrExists) {
		t.Errorf("creating the topic again returned %v", err)
	}
	if _, err := b.CreateSubscription(ctx, sub); !errors.Is(err, fastpubsub.ErrExists) {
		t.Errorf("creating the subscription again returned %v", err)
	}
	topics, err := b.ListTopics(ctx, fastpubsub.ListOptions{})
	if diff := cmp.Diff([]fastpubsub.Topic{topic}, topics); err != nil || diff != "" {
		t.Errorf("listed topics, %v (-want +got):\n%s", err, diff)
	}
	subs, err := b.ListSubscriptions(ctx, fastpubsub.ListOptions{})
	if diff := cmp.Diff([]fastpubsub.Subscription{sub}, subs); err != nil || diff != "" {
		t.Errorf("listed subscriptions, %v (-want +got):\n%s", err, diff)
	}
	if err := b.DeleteSubscription(ctx, "admin"); err != nil {
		t.Error(err)
	}
	if err := b.DeleteTopic(ctx, "admin"); err != nil {
		t.Error(err)
	}
	for call, err := range map[string]error{
		"consume": second(b.Consume(ctx, "admin", fastpubsub.ConsumeOptions{Consumer: "test"})),
		"ack":     second(b.Ack(ctx, "admin", nil)),
		"publish": second(b.Publish(ctx, "admin", numbered(0, 1)...)),
	} {
		if !errors.Is(err, fastpubsub.ErrNotFound) {
			t.Errorf("%s returned %v, want %v", call, err, fastpubsub.ErrNotFound)
		}
	}
}

// bouncedTransactions rolls back and commits, between transactions of others in the same sessions.
func bouncedTransactions(t *testing.T, b *fastpubsub.Broker, pool *pgxpool.Pool) {
	createTopic(t, b, "tx")
	createSubscription(t, b, "tx", "tx", noFilter)
	undo := errors.New("roll back")
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		for _, end := range []error{undo, nil} {
			var ids []fastpubsub.ID
			err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
				ids = publishTx(t, b, tx, "tx", numbered(0, 3)...)
				if got := consume(t, b, "tx", 10); len(got) > 0 {
					t.Errorf("%s: %d messages came before the commit", level, len(got))
				}
				return end
			})
			if !errors.Is(err, end) {
				t.Fatal(err)
			}
			if end != nil {
				ids = nil
			}
			if got := idsOf(consume(t, b, "tx", 10)); !slices.Equal(got, ids) {
				t.Errorf("%s, ended with %v: got %v, want %v", level, end, got, ids)
			}
			for _, end := range []error{undo, nil} {
				err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
					if n, err := b.AckTx(t.Context(), tx, "tx", ids); n != len(ids) || err != nil {
						t.Errorf("%s: acked %d of %d, %v", level, n, len(ids), err)
					}
					return end
				})
				if !errors.Is(err, end) {
					t.Fatal(err)
				}
			}
		}
	}
}

// bouncedWaiting waits in more calls than there are sessions.
func bouncedWaiting(t *testing.T, b *fastpubsub.Broker, _ *pgxpool.Pool) {
	createTopic(t, b, "waiting")
	createSubscription(t, b, "waiting", "waiting", noFilter)
	var mu sync.Mutex // protects got
	var got []fastpubsub.ID
	g, ctx := errgroup.WithContext(t.Context())
	for range bouncedConnections {
		g.Go(func() error {
			msgs, err := b.Consume(ctx, "waiting", fastpubsub.ConsumeOptions{Consumer: "test", Max: 1, Wait: time.Minute})
			mu.Lock()
			defer mu.Unlock()
			got = append(got, idsOf(msgs)...)
			return err
		})
	}
	want := publish(t, b, "waiting", numbered(0, bouncedConnections)...)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) })
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// bouncedAtOnce lets publishers and consumers of several subscriptions loose. A claim leaves what it took in its session,
// for the statement behind it in the same round trip. If another client got in between, messages would go to the wrong
// subscription, to two consumers, or to none.
func bouncedAtOnce(t *testing.T, b *fastpubsub.Broker, pool *pgxpool.Pool) {
	const publishers = 6
	filters := map[string]string{"all": noFilter, "odd": `{"odd":[true]}`, "single": noFilter}
	c := &crowd{broker: b, pool: pool, published: map[fastpubsub.ID]string{}, sessions: map[int]bool{}}
	createTopic(t, b, "t")
	for sub, filter := range filters {
		createSubscription(t, b, sub, "t", filter)
	}
	c.publishing.Store(publishers)
	taken := map[string][]*taker{}
	g, ctx := errgroup.WithContext(t.Context())
	for i := range publishers {
		g.Go(func() error { return c.publish(ctx, rand.New(rand.NewPCG(1, uint64(i)))) })
	}
	for sub := range filters {
		for i := range 3 {
			own := &taker{messages: map[fastpubsub.ID]string{}}
			taken[sub] = append(taken[sub], own)
			g.Go(func() error { return c.consume(ctx, sub, own, rand.New(rand.NewPCG(2, uint64(i)))) })
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}

	t.Logf("%d messages in %d sessions of %d clients", len(c.published), len(c.sessions), pool.Stat().TotalConns())
	if n := len(c.sessions); n < 2 || n > storetest.PgBouncerConnections || pool.Stat().TotalConns() <= storetest.PgBouncerConnections {
		t.Errorf("%d clients have shared %d sessions", pool.Stat().TotalConns(), n)
	}
	for sub, takers := range taken {
		// A consumer may have seen the end while another still held the lock for the last stretch.
		rest := &taker{messages: map[fastpubsub.ID]string{}}
		if err := c.consume(t.Context(), sub, rest, rand.New(rand.NewPCG(3, 0))); err != nil {
			t.Fatal(err)
		}
		all := map[fastpubsub.ID]string{}
		acked, twice, foreign := 0, 0, 0
		for _, own := range append(takers, rest) {
			acked += own.acked
			twice += own.twice
			for id, payload := range own.messages {
				if _, ok := all[id]; ok {
					twice++
				}
				all[id] = payload
			}
		}
		want := maps.Clone(c.published)
		if sub == "odd" {
			maps.DeleteFunc(want, func(_ fastpubsub.ID, payload string) bool { return strings.Contains(payload, "false") })
		}
		for id, payload := range all {
			if want[id] != payload {
				foreign++
			}
		}
		if lost := len(want) - (len(all) - foreign); lost+twice+foreign != 0 || acked != len(want) {
			t.Errorf("subscription %s: %d lost, %d delivered twice, %d not its own, %d acked; want %d messages",
				sub, lost, twice, foreign, acked, len(want))
		}
		if n, err := b.Ack(t.Context(), sub, slices.Collect(maps.Keys(want))); n != 0 || err != nil {
			t.Errorf("subscription %s: %d acked once more, %v", sub, n, err)
		}
	}
}

// A crowd publishes and consumes on one topic.
type crowd struct {
	broker     *fastpubsub.Broker
	pool       *pgxpool.Pool
	n          atomic.Int64 // payloads made
	publishing atomic.Int32 // publishers that are not done

	mu        sync.Mutex // protects the rest
	published map[fastpubsub.ID]string
	sessions  map[int]bool // process ids in the server
}

// A taker is what one consumer got and did.
type taker struct {
	messages     map[fastpubsub.ID]string
	twice, acked int
}

// inTx runs f in a transaction that is rolled back unless keep.
func (c *crowd) inTx(ctx context.Context, keep bool, f func(pgx.Tx) error) error {
	undo := errors.New("roll back")
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		var pid int
		if err := tx.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			return err
		}
		c.mu.Lock()
		c.sessions[pid] = true
		c.mu.Unlock()
		if err := f(tx); err != nil || keep {
			return err
		}
		return undo
	})
	if errors.Is(err, undo) {
		return nil
	}
	return err
}

func (c *crowd) publish(ctx context.Context, rng *rand.Rand) error {
	defer c.publishing.Add(-1)
	for range 50 {
		msgs := make([]fastpubsub.NewMessage, 1+rng.IntN(10))
		for i := range msgs {
			n := c.n.Add(1)
			msgs[i].Payload = fmt.Appendf(nil, `{"n":%d,"odd":%t}`, n, n%2 == 1)
		}
		var ids []fastpubsub.ID
		var err error
		keep := true
		if rng.IntN(2) == 0 {
			ids, err = c.broker.Publish(ctx, "t", msgs...)
		} else {
			keep = rng.IntN(4) > 0
			err = c.inTx(ctx, keep, func(tx pgx.Tx) error {
				for _, msg := range msgs {
					id, err := c.broker.PublishTx(ctx, tx, "t", msg)
					if err != nil {
						return err
					}
					ids = append(ids, id...)
				}
				return nil
			})
		}
		if err != nil {
			return err
		}
		c.mu.Lock()
		for i := range ids {
			if keep {
				c.published[ids[i]] = string(msgs[i].Payload)
			}
		}
		c.mu.Unlock()
	}
	return nil
}

// consume takes and acks until nothing comes after the last publisher is done.
func (c *crowd) consume(ctx context.Context, sub string, own *taker, rng *rand.Rand) error {
	for {
		last := c.publishing.Load() == 0
		msgs, err := c.broker.Consume(ctx, sub, fastpubsub.ConsumeOptions{Consumer: "test", Max: 1 + rng.IntN(20), Single: sub == "single"})
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
		for _, msg := range msgs {
			if _, ok := own.messages[msg.ID]; ok {
				own.twice++
			}
			own.messages[msg.ID] = string(msg.Payload)
		}
		n, err := c.ack(ctx, sub, idsOf(msgs), rng)
		if err != nil {
			return err
		}
		own.acked += n
	}
}

func (c *crowd) ack(ctx context.Context, sub string, ids []fastpubsub.ID, rng *rand.Rand) (n int, err error) {
	if rng.IntN(2) == 0 {
		return c.broker.Ack(ctx, sub, ids)
	}
	for _, keep := range []bool{false, true} {
		err = c.inTx(ctx, keep, func(tx pgx.Tx) error {
			n, err = c.broker.AckTx(ctx, tx, sub, ids)
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}
