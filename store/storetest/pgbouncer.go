package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

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
	program, err := exec.LookPath("pgbouncer")
	if err != nil { // Debian has it where only root's PATH leads
		program, err = exec.LookPath("/usr/sbin/pgbouncer")
	}
	if err != nil {
		const missing = "NOT TESTED: %s needs PgBouncer, which is neither in PATH nor in /usr/sbin: " +
			"install it (apt install pgbouncer, brew install pgbouncer)"
		if os.Getenv(requirePgBouncerEnv) != "" {
			tb.Fatalf(missing+"; %s is set", tb.Name(), requirePgBouncerEnv)
		}
		tb.Skipf(missing, tb.Name())
	}
	ctx, cancel := context.WithTimeout(tb.Context(), testdb.SetupTimeout)
	defer cancel()
	address, files, err := configurePgBouncer(db.URL, mode)
	if err != nil {
		tb.Fatalf("storetest: %v", err)
	}
	bouncer, err := pgserver.StartCompanion(ctx, program, []string{pgBouncerConfig}, files)
	if errors.Is(err, errors.ErrUnsupported) {
		tb.Skipf("NOT TESTED: %s: %v", tb.Name(), err)
	}
	if err != nil {
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
	go func() {
		select {
		case <-bouncer.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := testdb.WaitReady(ctx, address); err != nil {
		tb.Fatalf("storetest: PgBouncer: %v", err)
	}
	return address
}

const (
	pgBouncerConfig = "pgbouncer.ini"
	pgBouncerUsers  = "users.txt"
)

// configurePgBouncer returns the address of a PgBouncer for the database at server, and its configuration.
func configurePgBouncer(server, mode string) (address string, files map[string]string, err error) {
	config, err := pgconn.ParseConfig(server)
	if err != nil {
		return "", nil, err
	}
	port, err := pgserver.FreePort()
	if err != nil {
		return "", nil, err
	}
	// A password of its own: whoever gets in is on the server as the user of the tests.
	const user, database = "client", "shared"
	password := rand.Text()
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	var text strings.Builder
	fmt.Fprintf(&text, "[databases]\n%s = host=%s port=%d dbname=%s user=%s connect_query=%s", database,
		quote(config.Host), config.Port, quote(config.Database), quote(config.User), quote("SET search_path = ''"))
	if config.Password != "" {
		fmt.Fprintf(&text, " password=%s", quote(config.Password))
	}
	fmt.Fprintf(&text, `
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
server_tls_sslmode = prefer
pool_mode = %s
default_pool_size = %d
ignore_startup_parameters = search_path
log_connections = 0
log_disconnections = 0
log_stats = 0
`, port, pgBouncerUsers, mode, PgBouncerConnections)
	a := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password),
		Host: fmt.Sprintf("127.0.0.1:%d", port), Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return a.String(), map[string]string{
		pgBouncerConfig: text.String(),
		pgBouncerUsers:  fmt.Sprintf("%q %q\n", user, password),
	}, nil
}
