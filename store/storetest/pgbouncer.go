package storetest

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/internal/testdb"
)

// requirePgBouncerEnv makes tests fail, not skip, where there is no PgBouncer.
const requirePgBouncerEnv = "FASTPUBSUB_TEST_REQUIRE_PGBOUNCER"

// PgBouncerConnections is how many connections to the server all clients of a PgBouncer share.
const PgBouncerConnections = 4

// NewPgBouncer starts a PgBouncer in transaction mode in front of db's server, and stops it when the test has ended. It
// returns the address of db's database there, with a user and password. As in db.Pool search_path is empty, and no
// client can change that when it connects.
//
// It skips the test where PgBouncer is not installed, unless FASTPUBSUB_TEST_REQUIRE_PGBOUNCER is set.
func NewPgBouncer(tb testing.TB, db *DB) string {
	tb.Helper()
	return NewPgBouncerMode(tb, db, "transaction")
}

// NewPgBouncerMode is NewPgBouncer in another pool_mode: session or statement.
func NewPgBouncerMode(tb testing.TB, db *DB, mode string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), testdb.SetupTimeout)
	defer cancel()
	address, bouncer, err := pgserver.StartPgBouncer(ctx, db.URL, mode, PgBouncerConnections)
	switch {
	case errors.Is(err, pgserver.ErrNoPgBouncer) && os.Getenv(requirePgBouncerEnv) != "":
		tb.Fatalf("NOT TESTED: %s: %v; %s is set", tb.Name(), err, requirePgBouncerEnv)
	case errors.Is(err, pgserver.ErrNoPgBouncer), errors.Is(err, errors.ErrUnsupported):
		tb.Skipf("NOT TESTED: %s: %v", tb.Name(), err)
	case err != nil:
		tb.Fatalf("storetest: %v", err)
	}
	tb.Cleanup(func() {
		output, err := bouncer.Stop()
		if err != nil {
			tb.Errorf("storetest: stop PgBouncer: %v", err)
		}
		if tb.Failed() {
			tb.Logf("PgBouncer printed:\n%s", output)
		}
	})
	return address
}
