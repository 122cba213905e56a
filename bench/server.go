package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/bench"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// serverSettings are those of every server. The rest is PostgreSQL's default: synchronous_commit, fsync and
// full_page_writes are on, autovacuum too.
var serverSettings = map[string]string{
	"shared_buffers":     "256MB",
	"max_connections":    "300",
	"max_wal_size":       "4GB",
	"checkpoint_timeout": "15min", // a checkpoint before each phase, and none in it
}

const startTimeout = 2 * time.Minute

// A server is a system's own PostgreSQL server. Each phase has a new database on it.
type server struct {
	pg        *pgserver.Server
	databases int
}

func startServer(ctx context.Context, bin string) (*server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	pg, err := pgserver.Start(ctx, pgserver.Options{Bin: bin, Durable: true, Settings: maps.Clone(serverSettings)})
	if err != nil {
		return nil, err
	}
	return &server{pg: pg}, nil
}

// crash kills the server and brings it back.
func (s *server) crash(ctx context.Context) error {
	if err := s.pg.Kill(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return s.pg.Restart(ctx)
}

// A database is empty at first, and dropped at the end.
type database struct {
	server  *server
	name    string
	url     string
	control *pgx.Conn // of the harness
}

func (s *server) create(ctx context.Context) (*database, error) {
	s.databases++
	d := &database{server: s, name: fmt.Sprintf("bench_%d", s.databases)}
	if err := s.admin(ctx, "CREATE DATABASE "+d.name); err != nil {
		return nil, err
	}
	u, err := url.Parse(s.pg.URL())
	if err != nil {
		return nil, err
	}
	u.Path = "/" + d.name
	d.url = u.String()
	d.control, err = pgx.Connect(ctx, d.url)
	return d, err
}

func (s *server) admin(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.pg.URL())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql)
	return err
}

// reconnect replaces the control connection, after a crash.
func (d *database) reconnect(ctx context.Context) (err error) {
	_ = d.control.Close(ctx) // it is dead
	d.control, err = pgx.Connect(ctx, d.url)
	return err
}

func (d *database) drop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var all error
	if d.control != nil {
		all = d.control.Close(ctx)
	}
	return errors.Join(all, d.server.admin(ctx, "DROP DATABASE "+d.name+" WITH (FORCE)"))
}

// hold opens a transaction that stays open: a snapshot, or a writer.
func (d *database) hold(ctx context.Context, what string) (*pgx.Conn, error) {
	if what == "" {
		return nil, nil
	}
	conn, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return nil, err
	}
	sql := "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1"
	if what == holdWriter {
		sql = "BEGIN; SELECT pg_current_xact_id()"
	}
	if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	return conn, nil
}

// release ends it. That it did not last until now would make the figures wrong, so it is an error.
func release(ctx context.Context, held *pgx.Conn) error {
	if held == nil {
		return nil
	}
	_, err := held.Exec(ctx, "COMMIT")
	return errors.Join(err, held.Close(ctx))
}

// schemas lists those that hold a system's tables.
func (d *database) schemas(ctx context.Context) ([]string, error) {
	const q = `
SELECT nspname FROM pg_catalog.pg_namespace
WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
ORDER BY nspname COLLATE "C"`
	rows, _ := d.control.Query(ctx, q) // CollectRows reports Query's error
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// tables lists all of the database. It counts rows first, rather than go by what sessions have reported so far: ANALYZE
// looks at every page of a table of less than 30,000, some 230 MiB.
func (d *database) tables(ctx context.Context, m *bench.Meter) ([]bench.Table, error) {
	if _, err := d.control.Exec(ctx, "ANALYZE"); err != nil {
		return nil, err
	}
	schemas, err := d.schemas(ctx)
	if err != nil {
		return nil, err
	}
	var all []bench.Table
	for _, schema := range schemas {
		tables, err := m.Tables(ctx, schema)
		if err != nil {
			return nil, err
		}
		all = append(all, tables...)
	}
	return all, nil
}
