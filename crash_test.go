package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A ledger has what callers were told: an id is in it once its call has returned.
type ledger struct {
	mu        sync.Mutex // protects the rest
	published map[fastpubsub.ID]int
	delivered map[fastpubsub.ID]bool
	acked     map[fastpubsub.ID]bool
}

// TestCrash kills the database server under load, several times: what was published is delivered in the end, what was
// acked is not delivered again, and no id is given out twice, also by sessions that do not wait for their commits.
func TestCrash(t *testing.T) {
	t.Parallel()
	if err := crash(t, nil); err != nil {
		t.Error(err)
	}
}

// TestCrashWithoutDurableIDs shows that TestCrash would see a publish that the crash forgets.
func TestCrashWithoutDurableIDs(t *testing.T) {
	t.Parallel()
	err := crash(t, &protection{"publish", "IF current_setting('synchronous_commit') = 'off' THEN", "IF false THEN"})
	if err == nil {
		t.Fatal("nothing goes wrong without the protection")
	}
	t.Logf("as it should: %v", err)
}

func crash(t *testing.T, without *protection) error {
	// A long delay makes sure that something is lost of what may be lost.
	srv, db := storetest.NewServer(t, map[string]string{"wal_writer_delay": "10s", "wal_writer_flush_after": "0"})
	config := db.Pool.Config()
	config.MaxConns = 20
	// Publishers do not wait for their commits, consumers do.
	consumers, consumerPool := brokerOn(t, db.Schema, config.Copy())
	config.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	publishers, publisherPool := brokerOn(t, db.Schema, config)
	if without != nil {
		takeOut(t, db, *without)
	}
	createTopic(t, consumers, "t")
	createSubscription(t, consumers, "s", "t", noFilter)

	l := &ledger{published: map[fastpubsub.ID]int{}, delivered: map[fastpubsub.ID]bool{}, acked: map[fastpubsub.ID]bool{}}
	for round := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		var g errgroup.Group
		for range 4 {
			g.Go(func() error { l.publish(ctx, publishers); return nil })
			if without == nil { // any commit that waits makes all before it durable
				g.Go(func() error { return l.consume(ctx, consumers) })
			}
		}
		enough := time.Now().Add(20 * time.Second)
		for l.size() < 300*(round+1) && time.Now().Before(enough) {
			time.Sleep(time.Millisecond) // the load decides, not the clock
		}
		killErr := srv.Kill()
		cancel()
		if err := errors.Join(killErr, g.Wait(), srv.Restart(t.Context())); err != nil {
			return err
		}
		consumerPool.Reset() // its connections are dead
		publisherPool.Reset()
		db.Pool.Reset()
	}

	for {
		msgs, err := consumers.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "auditor", Max: 100})
		if err != nil {
			return err
		}
		if len(msgs) == 0 {
			break
		}
		for _, m := range msgs {
			if l.acked[m.ID] {
				return fmt.Errorf("%v was delivered again after it had been acked", m.ID)
			}
			l.delivered[m.ID] = true
		}
	}
	// A consumer may have taken messages and died before it saw them. They are with it until their ack deadline.
	rows, _ := db.Pool.Query(t.Context(), db.SQL(`
		SELECT {schema}.message_id(m.xid, seq)
		FROM {schema}.leases l JOIN {schema}.subscriptions s ON s.num = l.sub AND s.id = 's'
		CROSS JOIN unnest(l.remaining) r CROSS JOIN generate_series(lower(r), upper(r) - 1) seq
		JOIN {schema}.messages m ON m.base = seq & ~65535`))
	leased, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		return err
	}
	for _, id := range leased {
		if l.acked[id] {
			return fmt.Errorf("%v is leased after it had been acked", fastpubsub.ID(id))
		}
		l.delivered[id] = true
	}
	lost, twice := 0, 0
	for id, n := range l.published {
		if !l.delivered[id] {
			lost++
		}
		if n > 1 {
			twice++
		}
	}
	if lost+twice > 0 {
		return fmt.Errorf("of %d messages %d are lost, %d share an id with another", len(l.published), lost, twice)
	}
	t.Logf("%d messages, %d acked", len(l.published), len(l.acked))
	return nil
}

func brokerOn(t *testing.T, schema string, config *pgxpool.Config) (*fastpubsub.Broker, *pgxpool.Pool) {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	b, err := fastpubsub.New(pool, fastpubsub.Config{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	return b, pool
}

func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.published)
}

// publish goes on until the server is gone.
func (l *ledger) publish(ctx context.Context, b *fastpubsub.Broker) {
	for i := 0; ; i++ {
		ids, err := b.Publish(ctx, "t", numbered(i, 1+i%5)...)
		if err != nil {
			return
		}
		l.mu.Lock()
		for _, id := range ids {
			l.published[id]++
		}
		l.mu.Unlock()
	}
}

// consume goes on until the server is gone. Of what it gets it acks a part.
func (l *ledger) consume(ctx context.Context, b *fastpubsub.Broker) error {
	for {
		msgs, err := b.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: 7})
		if err != nil {
			return nil
		}
		ids := idsOf(msgs)
		l.mu.Lock()
		for _, id := range ids {
			if l.acked[id] {
				l.mu.Unlock()
				return fmt.Errorf("%v was delivered again after it had been acked", id)
			}
			l.delivered[id] = true
		}
		l.mu.Unlock()
		ids = ids[:len(ids)*2/3]
		n, err := b.Ack(ctx, "s", ids)
		if err != nil {
			return nil
		}
		if n != len(ids) {
			return fmt.Errorf("acked %d of %d", n, len(ids))
		}
		l.mu.Lock()
		for _, id := range ids {
			l.acked[id] = true
		}
		l.mu.Unlock()
	}
}
