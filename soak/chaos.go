package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/crashtest"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// chaos is what happens to those who work.
type chaos struct {
	restarts, cuts, kills, stops, jumps atomic.Int64

	wg     sync.WaitGroup
	failed chan error // what keeps the soak from going on
}

// every calls do at random intervals until ctx ends.
func (c *chaos) every(ctx context.Context, rng *rand.Rand, least, most time.Duration, do func(rng *rand.Rand) error) {
	rng = rand.New(rand.NewPCG(rng.Uint64(), 0))
	c.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(least + time.Duration(rng.Int64N(int64(most-least)))):
			}
			if err := do(rng); err != nil && ctx.Err() == nil {
				select {
				case c.failed <- err:
				default:
				}
				return
			}
		}
	})
}

// killDatabase kills the server with all its processes, and starts it again.
func (c *chaos) killDatabase(srv *pgserver.Server, record crashtest.Recorder) error {
	if err := record(crashtest.Entry{Call: crashtest.Crash}); err != nil {
		return err
	}
	if err := srv.Kill(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // it is not left half done
	defer cancel()
	if err := srv.Restart(ctx); err != nil {
		return err
	}
	c.restarts.Add(1)
	return record(crashtest.Entry{Call: crashtest.Crash, Ended: true})
}

// cut ends connections: between client and server, or the server's process.
func (c *chaos) cut(ctx context.Context, db *storetest.DB, p *proxy, rng *rand.Rand) error {
	share := 0.02
	if rng.IntN(20) == 0 {
		share = 1
	}
	if rng.IntN(2) == 0 {
		c.cuts.Add(int64(p.cut(rng, share)))
		return nil
	}
	var n int64
	err := db.Pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
	                              WHERE application_name = $1 AND random() < $2`, applicationName, share).Scan(&n)
	c.cuts.Add(n)
	if explained(err) {
		return nil // the database is away
	}
	return err
}

// jump moves the engine's clock on or back. The clocks of clients cannot matter: no time of theirs is sent, and for how long
// they wait they go by clocks that nobody sets.
func (c *chaos) jump(ctx context.Context, clock *storetest.Clock, rng *rand.Rand) error {
	d := time.Duration(rng.Int64N(int64(25*time.Second))) - 10*time.Second
	if rng.IntN(20) == 0 {
		d = 10 * time.Minute
	}
	err := clock.Move(ctx, d)
	if explained(err) {
		return nil
	}
	c.jumps.Add(1)
	return err
}

// look keeps a snapshot and a lock on the log for some seconds, as pg_dump does.
func (c *chaos) look(ctx context.Context, db *storetest.DB, rng *rand.Rand) error {
	err := pgx.BeginTxFunc(ctx, db.Pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if rng.IntN(2) == 0 {
			if _, err := tx.Exec(ctx, db.SQL("LOCK TABLE {schema}.messages IN ACCESS SHARE MODE")); err != nil {
				return err
			}
		}
		var n int
		if err := tx.QueryRow(ctx, db.SQL("SELECT count(*) FROM {schema}.deliveries")).Scan(&n); err != nil {
			return err
		}
		pause(ctx, rng, 5*time.Second)
		return nil
	})
	if explained(err) {
		return nil
	}
	return err
}

// children are the processes that are killed and stopped.
type children struct {
	mu     sync.Mutex // protects list and begun
	list   []*crashtest.Child
	begun  int
	config processConfig
}

// start starts a child in the place of another, which may be none yet.
func (c *children) start(i int) error {
	c.begun++
	config := c.config
	config.Name = fmt.Sprint("process ", c.begun)
	config.Seed += uint64(c.begun)
	config.First = int64(1000+c.begun) * 1_000_000
	child, err := startChild(config)
	if err != nil {
		return err
	}
	if i == len(c.list) {
		c.list = append(c.list, child)
	} else {
		c.list[i] = child
	}
	return nil
}

func (c *children) startAll(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		if err := c.start(i); err != nil {
			return err
		}
	}
	return nil
}

// disturb kills a child, or stops it for a while.
func (c *children) disturb(ctx context.Context, counts *chaos, rng *rand.Rand) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := rng.IntN(len(c.list))
	if rng.IntN(2) == 0 {
		counts.kills.Add(1)
		if err := c.list[i].Kill(); err != nil {
			return fmt.Errorf("a process ended by itself: %w", err)
		}
		return c.start(i)
	}
	counts.stops.Add(1)
	if err := c.list[i].Signal(sigStop); err != nil {
		return err
	}
	pause(ctx, rng, 5*time.Second)
	return c.list[i].Signal(sigCont)
}

// killAll ends all children. One that had ended by itself is an error.
func (c *children) killAll() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, child := range c.list {
		if killErr := child.Kill(); err == nil {
			err = killErr
		}
	}
	c.list = nil
	return err
}
