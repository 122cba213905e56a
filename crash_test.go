package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestCrash kills the database server under load, several times: each message that was published is acked once, or dead
// after as many attempts as are allowed; what was acked is not delivered again, and no id is given out twice, also by
// sessions that do not wait for their commits.
func TestCrash(t *testing.T) {
	t.Parallel()
	if err := crash(t, nil).Err; err != nil {
		t.Error(err)
	}
}

// TestCrashWithoutDurableIDs shows that TestCrash would see a publish that the crash forgets.
func TestCrashWithoutDurableIDs(t *testing.T) {
	t.Parallel()
	found := crash(t, &protection{"publish", "IF current_setting('synchronous_commit') = 'off' THEN", "IF false THEN"})
	if found.Lost+found.Twice == 0 {
		t.Fatalf("without the protection no message is lost and no id given out twice: %v", found.Err)
	}
	t.Logf("as it should: %v", found.Err)
}

// crash returns what an audit finds in the end.
func crash(t *testing.T, without *protection) crashtest.Findings {
	t.Helper()
	const (
		rounds   = 3
		patience = time.Minute // for the load of a round
	)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	// The WAL writer is to leave what it may: since 17 it is woken by every commit when wal_writer_flush_after is 0.
	srv, db := storetest.NewServer(t, map[string]string{"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"})
	config := db.Pool.Config()
	config.MaxConns = 20
	// Publishers do not wait for their commits, consumers do.
	consumers, consumerPool := brokerOn(t, db.Schema, config.Copy())
	config.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	publishers, publisherPool := brokerOn(t, db.Schema, config)
	if without != nil {
		takeOut(t, db, *without)
	}
	clock := db.StopClock(t)
	crashtest.Create(t, consumers)

	l := &crashLoad{clock: clock, ahead: 100}
	if without != nil {
		l.ahead = 1000
	}
	for round := range rounds {
		l.killing.Store(false)
		l.published.Store(0)
		l.stepped.Store(0)
		ctx, cancel := context.WithCancel(t.Context())
		g, loaded := errgroup.WithContext(ctx)
		for i := range 4 {
			name := fmt.Sprintf("%d in round %d", i, round)
			g.Go(func() error { return l.publish(ctx, publishers, "publisher "+name) })
			if without == nil { // any commit that waits makes all before it durable
				w := &crashtest.Worker{Name: "consumer " + name, Broker: consumers, Subscription: crashtest.Subscription,
					Rand: rand.New(rand.NewPCG(rng.Uint64(), 0)), Record: l.ledger.Add}
				g.Go(func() error { return l.work(ctx, w) })
			}
		}
		if without == nil {
			g.Go(func() error { return l.maintain(ctx, db) })
		}
		wantPublished, wantSteps := 200+rng.Int64N(200), 40+rng.Int64N(80)
		if without != nil {
			wantSteps = 0
		}
		end := time.Now().Add(patience)
		for (l.published.Load() < wantPublished || l.stepped.Load() < wantSteps) && loaded.Err() == nil {
			if time.Now().After(end) {
				t.Fatalf("%d messages published and %d steps of consumers after %v", l.published.Load(), l.stepped.Load(), patience)
			}
			time.Sleep(time.Millisecond) // the load decides, not the clock
		}
		l.killing.Store(true)
		killErr := srv.Kill()
		cancel()
		if err := errors.Join(killErr, g.Wait(), srv.Restart(t.Context())); err != nil {
			t.Fatal(err)
		}
		if err := l.ledger.Add(crashtest.Entry{Call: crashtest.Crash, Ended: true}); err != nil {
			t.Fatal(err)
		}
		consumerPool.Reset() // its connections are dead
		publisherPool.Reset()
		db.Pool.Reset()
	}
	return crashtest.Audit(t, consumers, clock, l.ledger.Entries())
}

// maintain leaves and empties slots all the time. What TRUNCATE and the others do is logged and flushed in its order, too.
func (l *crashLoad) maintain(ctx context.Context, db *storetest.DB) error {
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{
		Schema: db.Schema, Maintenance: fastpubsub.MaintenanceSettings{SpillAfter: 1, Patience: 1}})
	for err == nil {
		_, err = broker.CleanupAcked(ctx, 0)
	}
	if l.killing.Load() || ctx.Err() != nil {
		return nil
	}
	return err
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

// crashLoad is the callers of a server that will be killed.
type crashLoad struct {
	ledger    crashtest.Memory
	next      atomic.Int64 // number of a message
	published atomic.Int64 // in this round
	stepped   atomic.Int64 // in this round
	ahead     int64        // how many messages of a round consumers need not have cared for
	killing   atomic.Bool  // the server is being killed, or soon will be
	clockMu   sync.Mutex   // lets one caller move the clock
	clock     *storetest.Clock
}

// publish goes on until the server is gone, not too far ahead of the consumers.
func (l *crashLoad) publish(ctx context.Context, b *fastpubsub.Broker, name string) error {
	for {
		for l.published.Load() > l.ahead+5*l.stepped.Load() && !l.killing.Load() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		n := 1 + l.next.Load()%5
		from := l.next.Add(n) - n
		if err := crashtest.Recorder(l.ledger.Add).Publish(ctx, b, crashtest.Topic, name, int(from), int(n)); err != nil {
			return l.unlessKilled(err)
		}
		l.published.Add(n)
	}
}

// work goes on until the server is gone. It is the steps that move the clock.
func (l *crashLoad) work(ctx context.Context, w *crashtest.Worker) error {
	move := func() error {
		l.clockMu.Lock()
		defer l.clockMu.Unlock()
		return l.clock.Move(ctx, upTo(w.Rand, 300*time.Millisecond))
	}
	for {
		if err := w.Step(ctx); err != nil {
			return l.unlessKilled(err)
		}
		if err := move(); err != nil {
			return l.unlessKilled(err)
		}
		l.stepped.Add(1)
	}
}

// unlessKilled passes on an error that a killed server does not explain.
func (l *crashLoad) unlessKilled(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !l.killing.Load() || ok && !strings.HasPrefix(pgErr.Code, "57P") { // operator intervention
		return err
	}
	return nil
}
