// Package storetest gives each test a schema of its own, migrated, in a real PostgreSQL.
//
// The server is the one that FASTPUBSUB_TEST_DATABASE_URL names; else a throw-away one from binaries on this machine;
// else a throw-away one in Docker. It is started once per test process, when the first test asks for it, and Main
// stops it, so a package that uses storetest has
//
//	func TestMain(m *testing.M) { storetest.Main(m) }
package storetest

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/internal/testdb"
	"github.com/fastpubsub/fastpubsub/migrations"
)

// DB is a migrated schema.
type DB struct {
	// Pool has connections with an empty search_path, so that a statement that forgets the schema fails.
	Pool *pgxpool.Pool
	// Schema is the schema's name, which matches ^[a-z_][a-z0-9_]{0,62}$.
	Schema string
	// URL is the database's address, with user and password.
	URL string

	config         *pgxpool.Config
	skipInvariants bool
}

// Main runs the tests of a package and stops the server that they shared. It is all that a TestMain needs to do; the
// exit code is that of the tests, or 1 if they passed and the server could not be stopped.
func Main(m *testing.M) { os.Exit(testdb.Run(m)) }

// New returns a new schema for one test, and drops it when the test and its subtests have ended. If Invariants do not
// hold then, or a connection of the pool was not given back, the test fails. Options may change how the pool is set up,
// such as its size or pgx's query mode.
//
// It ends the test with Fatal if there is no server to be had, or if one would have to be started and Main does not run the tests.
func New(tb testing.TB, options ...func(*pgxpool.Config)) *DB {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), testdb.SetupTimeout)
	defer cancel()
	db, err := Open(ctx, tb.Name(), options...)
	if err != nil {
		tb.Fatalf("storetest: %v", err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Errorf("storetest: %v", err)
		}
	})
	return db
}

// Open is New where there is no test, as in an Example: the caller closes the DB. Name is made part of the schema's.
func Open(ctx context.Context, name string, options ...func(*pgxpool.Config)) (*DB, error) {
	url, err := testdb.URL("func TestMain(m *testing.M) { storetest.Main(m) }")
	if err != nil {
		return nil, err
	}
	return open(ctx, url, name, options)
}

// NewServer returns a durable server for one test alone, to kill and restart, and a schema in it. Settings are
// PostgreSQL parameters; nil is none. Both are gone when the test has ended; Invariants are checked if the server still
// runs then.
//
// It skips the test where no server binaries are installed, whatever else there is to test against.
func NewServer(tb testing.TB, settings map[string]string) (*pgserver.Server, *DB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), testdb.SetupTimeout)
	defer cancel()
	srv, err := pgserver.Start(ctx, pgserver.Options{Durable: true, Settings: settings})
	if errors.Is(err, pgserver.ErrNoBinaries) || errors.Is(err, errors.ErrUnsupported) {
		tb.Skipf("NOT TESTED: %s needs a server of its own that it can kill: %v", tb.Name(), err)
	}
	if err != nil {
		tb.Fatalf("storetest: %v", err)
	}
	tb.Cleanup(func() {
		if err := srv.Stop(); err != nil {
			tb.Errorf("storetest: %v", err)
		}
	})
	db, err := open(ctx, srv.URL(), tb.Name(), nil)
	if err != nil {
		tb.Fatalf("storetest: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testdb.CloseTimeout)
		defer cancel()
		select {
		case <-srv.Done():
		default:
			if err := db.CheckInvariants(ctx); err != nil {
				tb.Errorf("storetest: %v", err)
			}
		}
		if err := testdb.ClosePool(ctx, db.Pool); err != nil {
			tb.Errorf("storetest: %v", err)
		}
	})
	return srv, db
}

func open(ctx context.Context, url, name string, options []func(*pgxpool.Config)) (*DB, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	db := &DB{Schema: testdb.SchemaName("t_", name), URL: url, config: config.Copy()}
	if err := migrations.Up(ctx, config.ConnConfig.Copy(), db.Schema); err != nil {
		return nil, errors.Join(err, testdb.Drop(db.config.ConnConfig, db.Schema))
	}
	config.ConnConfig.RuntimeParams["search_path"] = ""
	config.ConnConfig.RuntimeParams["application_name"] = db.Schema
	for _, option := range options {
		option(config)
	}
	if db.Pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, errors.Join(err, testdb.Drop(db.config.ConnConfig, db.Schema))
	}
	return db, nil
}

// Close checks Invariants, closes the pool and drops the schema. It waits at most 30 seconds for connections that were
// not given back, and reports them.
func (db *DB) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), testdb.CloseTimeout)
	defer cancel()
	return errors.Join(db.CheckInvariants(ctx), testdb.ClosePool(ctx, db.Pool), testdb.Drop(db.config.ConnConfig, db.Schema))
}

// SQL returns q with the quoted name of the schema for each {schema}.
func (db *DB) SQL(q string) string { return testdb.Fill(q, db.Schema) }
