package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
)

// applicationName is that of all connections that may be cut.
const applicationName = "soak"

// backlog is how many messages may wait in a subscription before publishers pause.
const backlog = 2000

// A process is this one, or a child: callers that share connections.
type process struct {
	processConfig
	pool   *pgxpool.Pool
	lazy   *pgxpool.Pool // its sessions do not wait for their commits
	broker *fastpubsub.Broker
	record crashtest.Recorder

	next    atomic.Int64 // number of a message
	behind  atomic.Bool  // much waits
	handled atomic.Int64 // handlers that were begun
	wg      sync.WaitGroup
}

// processConfig is what a child is told.
type processConfig struct {
	URL, Schema string
	Ledger      string // a file
	Name        string
	Seed        uint64
	First       int64 // number of its first message
	Publishers  int
	Consumers   int // of each subscription
	Rate        int // messages a second
}

const childEnv = "FASTPUBSUB_SOAK_CHILD"

func startChild(c processConfig) (*crashtest.Child, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return crashtest.Start(nil, childEnv+"="+string(text))
}

// runChild works until it is killed.
func runChild(text string) error {
	crashtest.ExitWithParent()
	var c processConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	p, err := newProcess(c)
	if err != nil {
		return err
	}
	p.start(context.Background())
	p.wg.Wait()
	return nil
}

func newProcess(c processConfig) (*process, error) {
	ledger, err := crashtest.OpenFile(c.Ledger)
	if err != nil {
		return nil, err
	}
	p := &process{processConfig: c, record: ledger.Add}
	p.next.Store(c.First)
	if p.pool, err = p.openPool(""); err != nil {
		return nil, err
	}
	if p.lazy, err = p.openPool("off"); err != nil {
		return nil, err
	}
	p.broker, err = p.newBroker(p.pool)
	return p, err
}

func (p *process) openPool(synchronousCommit string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(p.URL)
	if err != nil {
		return nil, err
	}
	config.MaxConns = 25
	config.ConnConfig.ConnectTimeout = 10 * time.Second
	config.ConnConfig.RuntimeParams["search_path"] = ""
	config.ConnConfig.RuntimeParams["application_name"] = applicationName
	if synchronousCommit != "" {
		config.MaxConns = 5
		config.ConnConfig.RuntimeParams["synchronous_commit"] = synchronousCommit
	}
	return pgxpool.NewWithConfig(context.Background(), config)
}

func (p *process) newBroker(pool *pgxpool.Pool) (*fastpubsub.Broker, error) {
	return fastpubsub.New(pool, fastpubsub.Config{Schema: p.Schema, Logger: slog.New(slog.DiscardHandler),
		Maintenance: fastpubsub.MaintenanceSettings{SlotAge: 2 * time.Second, SpillAfter: 3 * time.Second, Patience: time.Second,
			Interval: 300 * time.Millisecond},
		OnMaintenance: func(pass fastpubsub.MaintenancePass) {
			if pass.Err != nil {
				p.fault("maintenance", pass.Err)
			}
		}})
}

func (p *process) close() {
	p.pool.Close()
	p.lazy.Close()
}

// repeat calls do until ctx ends, with a generator of its own.
func (p *process) repeat(ctx context.Context, name string, do func(rng *rand.Rand, caller string) error, ignored ...error) {
	caller := p.Name + " " + name
	hash := uint64(0)
	for _, c := range []byte(caller) {
		hash = hash*31 + uint64(c)
	}
	rng := rand.New(rand.NewPCG(p.Seed, hash))
	p.wg.Go(func() {
		for ctx.Err() == nil {
			if err := do(rng, caller); err != nil && ctx.Err() == nil {
				p.fault(caller, err, ignored...)
				pause(ctx, rng, 100*time.Millisecond) // the database is away
			}
		}
	})
}

// fault writes an error into the ledger that nothing explains which happens on purpose.
func (p *process) fault(caller string, err error, ignored ...error) {
	for _, e := range ignored {
		if errors.Is(err, e) {
			return
		}
	}
	if !explained(err) {
		_ = p.record(crashtest.Entry{Caller: caller, Call: crashtest.Fault, Text: describe(err)}) // there is no other place
	}
}

func describe(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%v; detail %q, where %q", err, pgErr.Detail, pgErr.Where)
	}
	return err.Error()
}

var errRolledBack = errors.New("rolled back on purpose")

// explained says whether an error is one of those that cuts, kills and waiting transactions explain.
func explained(err error) bool {
	if err == nil {
		return false
	}
	for _, e := range []error{errRolledBack, fastpubsub.ErrBusy, context.Canceled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF,
		net.ErrClosed, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, pgx.ErrTxClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pgErr.Code {
		case "57P01", "57P02", "57P03", // the server is being shut down, or starts
			"57014", // a call was cancelled
			"40001": // under REPEATABLE READ
			return true
		}
		return strings.HasPrefix(pgErr.Code, "08")
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return pgconn.SafeToRetry(err) || strings.Contains(err.Error(), "conn closed")
}

// pause waits for somewhat less than most.
func pause(ctx context.Context, rng *rand.Rand, most time.Duration) {
	select {
	case <-time.After(time.Duration(rng.Int64N(int64(most)))):
	case <-ctx.Done():
	}
}

// inTx commits what do did, and returns an error of crashtest.Undone if that certainly has not happened.
func inTx(ctx context.Context, pool *pgxpool.Pool, options pgx.TxOptions, do func(tx pgx.Tx) error) error {
	tx, err := pool.BeginTx(ctx, options)
	if err != nil {
		return crashtest.Undone(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // done, or the connection is gone
	}()
	if err := do(tx); err != nil {
		return crashtest.Undone(err)
	}
	return commitError(tx.Commit(ctx))
}

// commitError marks the error of a commit that has certainly not happened.
func commitError(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	// pgconn.SafeToRetry says nothing here: a commit that was sent, and whose answer never came, can end with "conn closed" too.
	if errors.Is(err, pgx.ErrTxCommitRollback) ||
		ok && !strings.HasPrefix(pgErr.Code, "57P") && !strings.HasPrefix(pgErr.Code, "08") {
		return crashtest.Undone(err)
	}
	return err
}
