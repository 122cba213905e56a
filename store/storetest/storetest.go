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
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/migrations"
)

const (
	setupTimeout = 2 * time.Minute // starting a server may include pulling an image
	closeTimeout = 30 * time.Second
)

// DB is a migrated schema.
type DB struct {
	// Pool has connections with an empty search_path, so that a statement that forgets the schema fails.
	Pool *pgxpool.Pool
	// Schema is the schema's name, which matches ^[a-z_][a-z0-9_]{0,62}$.
	Schema string
	// URL is the database's address, with user and password.
	URL string

	skipInvariants bool
}

// New returns a new schema for one test, and drops it when the test and its subtests have ended. If Invariants do not
// hold then, or a connection of the pool was not given back, the test fails. Options may change how the pool is set up,
// such as its size or pgx's query mode.
//
// It ends the test with Fatal if there is no server to be had, or if Main does not run the tests.
func New(tb testing.TB, options ...func(*pgxpool.Config)) *DB {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), setupTimeout)
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
	url, err := sharedURL()
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
	ctx, cancel := context.WithTimeout(tb.Context(), setupTimeout)
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
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		select {
		case <-srv.Done():
		default:
			if err := db.CheckInvariants(ctx); err != nil {
				tb.Errorf("storetest: %v", err)
			}
		}
		if err := db.closePool(ctx); err != nil {
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
	db := &DB{Schema: schemaName(name), URL: url}
	if err := migrations.Up(ctx, config.ConnConfig.Copy(), db.Schema); err != nil {
		return nil, errors.Join(err, db.drop())
	}
	config.ConnConfig.RuntimeParams["search_path"] = ""
	config.ConnConfig.RuntimeParams["application_name"] = db.Schema
	for _, option := range options {
		option(config)
	}
	if db.Pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, errors.Join(err, db.drop())
	}
	return db, nil
}

// Close checks Invariants, closes the pool and drops the schema. It waits at most 30 seconds for connections that were
// not given back, and reports them.
func (db *DB) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return errors.Join(db.CheckInvariants(ctx), db.closePool(ctx), db.drop())
}

func (db *DB) closePool(ctx context.Context) error {
	closed := make(chan struct{})
	go func() {
		db.Pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d connections of the pool were not given back", db.Pool.Stat().AcquiredConns())
	}
}

// drop uses a connection of its own: the pool's may be lent out, or have been made to fail.
func (db *DB) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		return fmt.Errorf("drop schema %q: %w", db.Schema, err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, db.SQL("DROP SCHEMA IF EXISTS {schema} CASCADE")); err != nil {
		return fmt.Errorf("drop schema %q: %w", db.Schema, err)
	}
	return nil
}

// SQL returns q with the quoted name of the schema for each {schema}.
func (db *DB) SQL(q string) string {
	return strings.ReplaceAll(q, "{schema}", pgx.Identifier{db.Schema}.Sanitize())
}

// schemaName makes a unique name for a schema, in which that of the test can be recognised.
func schemaName(test string) string {
	name := []byte("t_" + strings.ToLower(test))
	for i, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			name[i] = '_'
		}
	}
	suffix := make([]byte, 5)
	_, _ = rand.Read(suffix) // never fails
	return string(name[:min(len(name), 52)]) + "_" + hex.EncodeToString(suffix)
}
