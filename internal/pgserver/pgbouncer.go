package pgserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrNoPgBouncer means that no PgBouncer is installed.
var ErrNoPgBouncer = errors.New("PgBouncer is neither in PATH nor in /usr/sbin: install it (apt install pgbouncer, brew install pgbouncer)")

// FindPgBouncer returns the program, or ErrNoPgBouncer.
func FindPgBouncer() (string, error) {
	program, err := exec.LookPath("pgbouncer")
	if err != nil { // Debian has it where only root's PATH leads
		program, err = exec.LookPath("/usr/sbin/pgbouncer")
	}
	if err != nil {
		return "", ErrNoPgBouncer
	}
	return program, nil
}

const (
	pgBouncerConfig = "pgbouncer.ini"
	pgBouncerUsers  = "users.txt"
	pgBouncerMax    = 2000 // clients
)

// StartPgBouncer starts a PgBouncer in front of the server at an address, in a pool_mode, whose clients share so many
// connections, and waits until it answers. It returns its address, with a user and password. There search_path is empty, and no client
// can change that when it connects. Ctx covers the start only.
//
// It returns ErrNoPgBouncer where there is none.
func StartPgBouncer(ctx context.Context, server, mode string, connections int) (address string, c *Companion, err error) {
	program, err := FindPgBouncer()
	if err != nil {
		return "", nil, err
	}
	address, files, err := configurePgBouncer(server, mode, connections)
	if err != nil {
		return "", nil, err
	}
	if c, err = StartCompanion(ctx, program, []string{pgBouncerConfig}, files); err != nil {
		return "", nil, err
	}
	if err := c.waitFor(ctx, address); err != nil {
		output, stopErr := c.Stop()
		return "", nil, errors.Join(fmt.Errorf("start PgBouncer: %w\n%s", err, output), stopErr)
	}
	return address, c, nil
}

// waitFor waits until the database at an address can be connected to.
func (c *Companion) waitFor(ctx context.Context, address string) error {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, address)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-c.Done():
			return errExited
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-tick.C:
		}
	}
}

// configurePgBouncer returns the address of a PgBouncer for the database at server, and its configuration.
func configurePgBouncer(server, mode string, connections int) (address string, files map[string]string, err error) {
	config, err := pgconn.ParseConfig(server)
	if err != nil {
		return "", nil, err
	}
	port, err := FreePort()
	if err != nil {
		return "", nil, err
	}
	// A password of its own: whoever gets in is on the server as the user of server.
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
max_client_conn = %d
ignore_startup_parameters = search_path
log_connections = 0
log_disconnections = 0
log_stats = 0
`, port, pgBouncerUsers, mode, connections, pgBouncerMax)
	a := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password),
		Host: fmt.Sprintf("127.0.0.1:%d", port), Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return a.String(), map[string]string{
		pgBouncerConfig: text.String(),
		pgBouncerUsers:  fmt.Sprintf("%q %q\n", user, password),
	}, nil
}
