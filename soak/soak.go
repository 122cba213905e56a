package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// serverSettings leave to a kill what may be left to it: commits that nobody waits for are written late. What is in the
// operating system's hands survives, so fsync would only make the disk busy.
var serverSettings = map[string]string{
	"fsync": "off", "max_connections": "300", "deadlock_timeout": "100ms", "checkpoint_timeout": "30s",
	"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "log_lock_waits": "on",
}

// settleTimeout is how long it may take until all that waits is acked.
const settleTimeout = 15 * time.Minute

// A run is a soak on its way.
type soakRun struct {
	config
	rng     *rand.Rand
	path    string // of the ledger
	srv     *pgserver.Server
	proxy   *proxy
	db      *storetest.DB // past the proxy
	clock   *storetest.Clock
	process *process
	lives   *lives
	chaos   *chaos
	auditor *crashtest.Auditor
	reader  *crashtest.Reader
	begun   time.Time

	lastAck, longest int64 // milliseconds
}

// soak runs all of it. An error means that there is no verdict.
func soak(ctx context.Context, c config, out io.Writer) (r *report, err error) {
	s := &soakRun{config: c, rng: rand.New(rand.NewPCG(c.seed, 0)), auditor: crashtest.NewAuditor(), chaos: &chaos{failed: make(chan error, 1)}}
	if s.path = c.ledger; s.path == "" {
		dir, dirErr := os.MkdirTemp("", "fastpubsub-soak-")
		if dirErr != nil {
			return nil, dirErr
		}
		defer func() {
			if err == nil && !r.violated() {
				_ = os.RemoveAll(dir)
			}
		}()
		s.path = filepath.Join(dir, "ledger")
	} else if err := os.WriteFile(s.path, nil, 0o600); err != nil {
		return nil, err
	}
	if s.srv, err = pgserver.Start(ctx, pgserver.Options{Durable: true, Settings: serverSettings}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil || r.violated() {
			err = errors.Join(err, s.keepLog())
		}
		err = errors.Join(err, s.srv.Stop())
	}()
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	defer s.reader.Close()
	defer s.db.Pool.Close()
	fmt.Fprintf(out, "seed %d, %v, PostgreSQL %s, ledger %s\n", c.seed, c.duration, s.version(ctx), s.path)
	if err := s.work(ctx, out); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	return s.account(ctx)
}

// keepLog copies what the server has logged since it was started last.
func (s *soakRun) keepLog() error {
	text, err := os.ReadFile(s.srv.LogFile())
	if err != nil {
		return err
	}
	return os.WriteFile(s.path+".server.log", text, 0o600)
}

func (s *soakRun) version(ctx context.Context) (v string) {
	_ = s.db.Pool.QueryRow(ctx, "SHOW server_version").Scan(&v) // it is only printed
	return v
}

// prepare makes the schema and what is there all the time.
func (s *soakRun) prepare(ctx context.Context) error {
	const schema = fastpubsub.DefaultSchema
	config, err := pgxpool.ParseConfig(s.srv.URL())
	if err != nil {
		return err
	}
	if err := migrations.Up(ctx, config.ConnConfig, schema); err != nil {
		return err
	}
	config.MaxConns = 10
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	s.db = &storetest.DB{Pool: pool, Schema: schema, URL: s.srv.URL()}
	if s.clock, err = s.db.RunClock(ctx); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, effectsTable); err != nil {
		return err
	}
	if s.broken != "" {
		if err := protections[s.broken].TakeOut(ctx, s.db); err != nil {
			return err
		}
	}
	if s.proxy, err = newProxy(net.JoinHostPort("127.0.0.1", strconv.Itoa(s.srv.Port()))); err != nil {
		return err
	}
	through, err := url.Parse(s.srv.URL())
	if err != nil {
		return err
	}
	through.Host = s.proxy.address()
	s.process, err = newProcess(processConfig{URL: through.String(), Schema: schema, Ledger: s.path, Name: "main process",
		Seed: s.seed, First: 1, Publishers: s.publishers, Consumers: s.consumers, Rate: s.share(s.publishers)})
	if err != nil {
		return err
	}
	if s.reader, err = crashtest.OpenReader(s.path); err != nil {
		return err
	}
	s.lives = &lives{process: s.process, alive: map[string]bool{}}
	for _, topic := range []string{"main", "other"} {
		if err := s.lives.createTopic(ctx, topic); err != nil {
			return err
		}
	}
	for id, made := range subscriptions {
		if err := s.lives.subscribe(ctx, id, made); err != nil {
			return err
		}
	}
	return nil
}

// share is the part of the rate of so many publishers.
func (s *soakRun) share(publishers int) int {
	return max(1, s.rate*publishers/(s.publishers+s.processes))
}

// work lets everything happen until the time is over, or a promise was broken.
func (s *soakRun) work(ctx context.Context, out io.Writer) error {
	s.begun = time.Now()
	working, stop := context.WithTimeout(ctx, s.duration)
	defer stop()
	p := s.process
	p.start(working)
	for sub := range subscriptions {
		p.repeat(working, "undertaker of "+sub, func(rng *rand.Rand, caller string) error {
			return p.undertake(working, rng, caller, sub)
		})
	}
	p.repeat(working, "visitor", func(rng *rand.Rand, _ string) error { return s.lives.visitor(working, rng) })
	p.repeat(working, "brief", func(rng *rand.Rand, _ string) error { return s.lives.brief(working, rng) })

	all := &children{config: p.processConfig}
	all.config.Publishers, all.config.Consumers, all.config.Rate = 1, 1, s.share(1)
	if err := all.startAll(s.processes); err != nil {
		return errors.Join(err, all.killAll())
	}
	c := s.chaos
	c.every(working, s.rng, 8*time.Second, 25*time.Second, func(*rand.Rand) error { return c.killDatabase(s.srv, p.record) })
	c.every(working, s.rng, 100*time.Millisecond, 2*time.Second, func(rng *rand.Rand) error { return c.cut(working, s.db, s.proxy, rng) })
	c.every(working, s.rng, 2*time.Second, 8*time.Second, func(rng *rand.Rand) error { return c.jump(working, s.clock, rng) })
	c.every(working, s.rng, time.Second, 10*time.Second, func(rng *rand.Rand) error { return c.look(working, s.db, rng) })
	if s.processes > 0 {
		c.every(working, s.rng, 2*time.Second, 6*time.Second, func(rng *rand.Rand) error { return all.disturb(working, c, rng) })
	}

	err := s.watch(working, stop, out)
	stop()
	c.wg.Wait()
	err = errors.Join(err, all.killAll())
	p.wg.Wait()
	p.close()
	s.proxy.stop()
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		fmt.Fprintln(out, "interrupted: what was done so far is accounted for")
	}
	s.db.Pool.Reset() // the server was killed under its connections
	return crashtest.BackendsGone(context.WithoutCancel(ctx), s.db.Pool, applicationName)
}

// watch follows the ledger, and prints a line a minute.
func (s *soakRun) watch(ctx context.Context, stop func(), out io.Writer) error {
	second, minute := time.NewTicker(time.Second), time.NewTicker(time.Minute)
	defer second.Stop()
	defer minute.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.chaos.failed:
			return err
		case <-second.C:
			if err := s.follow(); err != nil {
				return err
			}
			if violations, _ := s.auditor.Violations(); len(violations) > 0 {
				fmt.Fprintf(out, "%v: a promise was broken: %v\n", time.Since(s.begun).Round(time.Second), violations[0])
				stop()
			}
		case <-minute.C:
			fmt.Fprintln(out, s.line(ctx))
		}
	}
}

// follow reads what is new in the ledger.
func (s *soakRun) follow() error {
	return s.reader.Each(func(e crashtest.Entry) {
		s.auditor.Follow(e)
		if e.Call == crashtest.Ack && e.Ended && e.Count > 0 {
			if s.lastAck > 0 {
				s.longest = max(s.longest, e.At-s.lastAck)
			}
			s.lastAck = e.At
		}
	})
}

// account takes all that is left, and accounts for every message.
func (s *soakRun) account(ctx context.Context) (r *report, err error) {
	broker, err := fastpubsub.New(s.db.Pool, fastpubsub.Config{Maintenance: fastpubsub.MaintenanceSettings{SpillAfter: 1, Patience: 1}})
	if err != nil {
		return nil, err
	}
	if err := s.follow(); err != nil {
		return nil, err
	}
	s.auditor.CutOff()
	r = &report{config: s.config, took: time.Since(s.begun), path: s.path, auditor: s.auditor}
	rests := map[string]crashtest.Rest{}
	for sub, alive := range s.lives.alive {
		if !alive {
			continue
		}
		settlement := crashtest.Settlement{Broker: broker, Subscription: sub, Move: s.clock.Move, Record: s.process.record}
		if subscriptions[sub].Effects {
			settlement.AckBy = func(ctx context.Context, msgs []crashtest.Message) (int, error) {
				return ackWithEffects(ctx, broker, s.db.Pool, sub, msgs, nil)
			}
		}
		rest, err := crashtest.Settle(ctx, settlement)
		if err == nil && subscriptions[sub].Effects {
			rest.Effects, err = s.effects(ctx, sub)
		}
		if err != nil { // nothing is killed or cut any more
			r.problems = append(r.problems, fmt.Sprintf("%s could not be settled: %s", sub, describe(err)))
			continue
		}
		rests[sub] = rest
	}
	if err := s.follow(); err != nil {
		return nil, err
	}
	r.line = s.line(ctx)
	for sub, rest := range rests {
		all, dead := s.auditor.Account(sub, rest)
		r.subscriptions = append(r.subscriptions, subscriptionReport{sub, all, dead, int(rest.After.Acked)})
	}
	if err := s.db.CheckInvariants(ctx); err != nil {
		r.problems = append(r.problems, err.Error())
	}
	if err := s.emptySlots(ctx, broker); err != nil {
		r.problems = append(r.problems, err.Error())
	}
	return r, nil
}

func (s *soakRun) effects(ctx context.Context, sub string) (map[int]int, error) {
	rows, err := s.db.Pool.Query(ctx, "SELECT n, count(*) FROM soak.effects WHERE sub = $1 GROUP BY n", sub)
	if err != nil {
		return nil, err
	}
	effects := map[int]int{}
	var n, count int
	_, err = pgx.ForEachRow(rows, []any{&n, &count}, func() error {
		effects[n] = count
		return nil
	})
	return effects, err
}

// emptySlots finds out whether the space of what was acked comes back.
func (s *soakRun) emptySlots(ctx context.Context, broker *fastpubsub.Broker) error {
	for range 5 { // it takes some calls until each slot was left
		freed, err := broker.CleanupAcked(ctx, 0)
		if err != nil {
			return err
		}
		if freed.Needed == 0 && freed.Waiting == 0 {
			return nil
		}
	}
	return errors.New("slots are needed, though all messages are acked or dead letters")
}
