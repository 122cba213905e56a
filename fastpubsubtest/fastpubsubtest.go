// Package fastpubsubtest is for tests of programs that use fastpubsub. They run on the real engine in a real PostgreSQL, in a
// schema of their own, whose clock stands still until the test moves it.
//
//	func TestMain(m *testing.M) { os.Exit(fastpubsubtest.Run(m)) }
//
//	func TestShip(t *testing.T) {
//		t.Parallel()
//		kit := fastpubsubtest.New(t, fastpubsubtest.Options{})
//		kit.Subscribe(t, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
//		...
//	}
//
// [Kit.RequirePublished] and [Kit.RequirePublishedTx] are about what the program publishes, [Kit.Handle] and [Kit.Drain] about
// what its handlers do, and a [Fault], [Kit.LoseCommit] and [Kit.HoldCommit] about what they do when something goes wrong.
//
// Methods take the testing.TB of the test or subtest that calls them, and end it with Fatal when something fails. Like Fatal
// they must be called from the goroutine that runs it.
package fastpubsubtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/testdb"
	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store"
)

// Run runs the tests of a package and then stops the PostgreSQL that [New] has brought up for them, if it had to. It returns the
// exit code for os.Exit. A package whose database is always there, by [Options] or by the environment, can do without.
func Run(m *testing.M) int { return testdb.Run(m) }

// Options say where a Kit works. The zero Options are good ones.
type Options struct {
	// URL is the address of a database whose user may create schemas. Default that in the environment variable
	// FASTPUBSUB_TEST_DATABASE_URL; if it is not set, a PostgreSQL is brought up, once for all tests of the process, and
	// stopped by [Run]: with the server programs on this machine, else with Docker.
	URL string
	// Pool is a pool for the Kit to work on, instead of URL. It stays the caller's and is not closed. Its address must be that
	// of the server itself, not of a pooler in transaction mode. There is no [Kit.Tables] then, and commits cannot be lost or held.
	Pool *pgxpool.Pool
	// Configure, if it is set, may change how the Kit's own pool is set up. It has 10 connections at least otherwise.
	Configure func(*pgxpool.Config)
	// Config is for the Broker. Schema must be empty. Logger defaults to the test's log.
	Config fastpubsub.Config
}

// A Kit is a Broker in a schema of its own. It is safe for concurrent use, as are several in one database.
type Kit struct {
	// Broker is the real one. The program under test may use it, or a Broker of its own with Schema in its Config.
	Broker *fastpubsub.Broker
	// Pool is what the Broker works on.
	Pool *pgxpool.Pool
	// Schema is where the Broker's tables are.
	Schema string
	// Tables is an empty schema for the tables of the test. It comes first in the search_path of Pool, before public, so
	// that what a migration creates without naming a schema is there. Empty if [Options].Pool was given.
	Tables string
	// URL is the database's address, with user and password. Empty if [Options].Pool was given.
	URL string

	store   *store.Store
	config  *pgx.ConnConfig // of Pool
	commits *commits        // nil if Pool is the caller's
}

// leftOpen is how long the end of a test waits for connections that were not given back.
const leftOpen = 5 * time.Second

// New returns a Kit for a test. At the end of the test and its subtests its schemas are dropped, with all that is in them. If
// connections of its own pool have not been given back 5 seconds later, the test fails and they are closed.
//
// The clock of the schema stands still at the database's time: see [Kit.Advance].
//
// It ends the test if there is no database to be had, and says what is missing.
func New(tb testing.TB, options Options) *Kit {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), testdb.SetupTimeout)
	defer cancel()
	k, err := newKit(ctx, tb, options)
	if err != nil {
		tb.Fatalf("fastpubsubtest: %v", err)
	}
	return k
}

func newKit(ctx context.Context, tb testing.TB, options Options) (*Kit, error) {
	if options.URL != "" && options.Pool != nil {
		return nil, errors.New("Options has both a URL and a Pool, which may be of different databases: leave one out")
	}
	if options.Pool != nil && options.Configure != nil {
		return nil, errors.New("Options.Configure is for a pool of the Kit's own, and Options has a Pool")
	}
	if options.Config.Schema != "" {
		return nil, fmt.Errorf("Options.Config.Schema must be empty, since each Kit has a schema of its own, not %q", options.Config.Schema)
	}
	k := &Kit{Schema: testdb.SchemaName("fps_", tb.Name()), Pool: options.Pool}
	k.store = store.New(k.Schema)
	config, err := k.poolConfig(ctx, options)
	if err != nil {
		return nil, err
	}
	err = migrations.Up(ctx, k.config, k.Schema)
	if refused := (*pgconn.ConnectError)(nil); !errors.As(err, &refused) {
		tb.Cleanup(func() {
			if err := k.close(); err != nil {
				tb.Errorf("fastpubsubtest: %v", err)
			}
		})
	}
	if err != nil {
		return nil, err
	}
	if k.Pool == nil {
		if k.Pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
			return nil, err
		}
		if _, err := k.Pool.Exec(ctx, testdb.Fill("CREATE SCHEMA {schema}", k.Tables)); err != nil {
			return nil, err
		}
	}
	if err := testdb.StopClock(ctx, k.Pool, k.Schema); err != nil {
		return nil, err
	}
	if options.Config.Logger == nil {
		log := &testLog{tb: tb}
		tb.Cleanup(log.end)
		options.Config.Logger = slog.New(slog.NewTextHandler(log, nil))
	}
	options.Config.Schema = k.Schema
	k.Broker, err = fastpubsub.New(k.Pool, options.Config)
	return k, err
}

// poolConfig finds out where the database is. It returns nil if the pool is there already.
func (k *Kit) poolConfig(ctx context.Context, options Options) (*pgxpool.Config, error) {
	if options.Pool != nil {
		given := options.Pool.Config()
		k.config = given.ConnConfig
		if given.BeforeConnect != nil { // passwords that change, for example
			return nil, given.BeforeConnect(ctx, k.config)
		}
		return nil, nil
	}
	k.URL = options.URL
	if k.URL == "" {
		url, err := testdb.URL("func TestMain(m *testing.M) { os.Exit(fastpubsubtest.Run(m)) }")
		if err != nil {
			return nil, err
		}
		k.URL = url
	}
	config, err := pgxpool.ParseConfig(k.URL)
	if err != nil {
		return nil, err
	}
	k.Tables = k.Schema[:min(len(k.Schema), 56)] + "_tables"
	k.config = config.ConnConfig.Copy()
	k.commits = &commits{}
	config.MaxConns = max(config.MaxConns, 10)
	config.ConnConfig.RuntimeParams["search_path"] = pgx.Identifier{k.Tables}.Sanitize() + ", public"
	config.ConnConfig.RuntimeParams["application_name"] = k.Schema
	config.ConnConfig.AfterNetConnect = k.commits.watch
	if options.Configure != nil {
		options.Configure(config)
	}
	return config, nil
}

// close gives everything back.
func (k *Kit) close() error {
	var err error
	if k.URL != "" && k.Pool != nil {
		ctx, cancel := context.WithTimeout(context.Background(), leftOpen)
		defer cancel()
		if err = testdb.ClosePool(ctx, k.Pool); err != nil {
			err = fmt.Errorf("%w: a transaction or rows were not closed", err)
			err = errors.Join(err, k.disconnect())
		}
	}
	schemas := []string{k.Schema}
	if k.Tables != "" {
		schemas = append(schemas, k.Tables)
	}
	return errors.Join(err, testdb.Drop(k.config, schemas...))
}

// disconnect ends the sessions that are left of our pool, whose locks would keep the schemas.
func (k *Kit) disconnect() error {
	ctx, cancel := context.WithTimeout(context.Background(), testdb.CloseTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, k.config.Copy())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()`, k.Schema)
	return err
}

// testLog is the log of a test, until that has ended.
type testLog struct {
	tb testing.TB

	mu    sync.Mutex // protects ended
	ended bool
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return len(p), nil
	}
	return l.tb.Output().Write(p)
}

func (l *testLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
}

// Subscribe creates a subscription, and its topic if that is not there yet, and returns it with what it left out filled in. It
// gets what is committed from now on.
func (k *Kit) Subscribe(tb testing.TB, sub fastpubsub.Subscription) fastpubsub.Subscription {
	tb.Helper()
	if _, err := k.Broker.CreateTopic(tb.Context(), sub.TopicID); err != nil && !errors.Is(err, fastpubsub.ErrExists) {
		tb.Fatalf("Subscribe: %v", err)
	}
	created, err := k.Broker.CreateSubscription(tb.Context(), sub)
	if err != nil {
		tb.Fatalf("Subscribe: %v", err)
	}
	return created
}

// Advance moves the schema's clock on. Ack deadlines, backoffs, delays and the ages by which maintenance judges go by that
// clock, so what becomes due or runs out meanwhile has done so when Advance returns. Consumers that wait notice within some 200
// milliseconds, or 2 seconds while [fastpubsub.Broker.Run] listens.
//
// Nothing else moves it, however long the test takes: a message that waits for its backoff waits for Advance. What does not ask the
// database goes by the real time: [fastpubsub.ReceiveOptions].MaxHandling, ConsumeOptions.Wait, tokens, and the intervals of Run. A message that a
// transaction had locked when its time came may be found only 10 seconds later by the schema's clock.
//
// The clock goes by microseconds. It ends the test if d is negative.
func (k *Kit) Advance(tb testing.TB, d time.Duration) {
	tb.Helper()
	if d < 0 {
		tb.Fatalf("Advance: the clock must not go back, as it would by %v", d)
	}
	if err := k.advance(tb.Context(), d); err != nil {
		tb.Fatalf("Advance: %v", err)
	}
}

// wake makes it look as if somebody had published, so that all who wait look for something to take.
const wake = `SELECT nextval('{schema}.message_base')`

func (k *Kit) advance(ctx context.Context, d time.Duration) error {
	if err := testdb.MoveClock(ctx, k.Pool, k.Schema, d); err != nil {
		return err
	}
	_, err := k.Pool.Exec(ctx, testdb.Fill(wake, k.Schema))
	return err
}

// Now returns the time by the schema's clock, in UTC.
func (k *Kit) Now(tb testing.TB) time.Time {
	tb.Helper()
	var now time.Time
	if err := k.Pool.QueryRow(tb.Context(), testdb.Fill("SELECT {schema}.clock()", k.Schema)).Scan(&now); err != nil {
		tb.Fatalf("Now: %v", err)
	}
	return now.UTC()
}
