package bench

import (
	"context"
	"runtime"

	"github.com/jackc/pgx/v5"
)

// A Server is what is measured.
type Server struct {
	Version    string    `json:"version"`
	VersionNum int       `json:"version_num"`
	SameHost   bool      `json:"same_host"` // as this process; false too where that cannot be found out
	Settings   []Setting `json:"settings"`
}

// A Setting is a parameter of the server as a session of the benchmark sees it.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (s Server) major() int { return s.VersionNum / 10000 }

// A Client is who measures.
type Client struct {
	GoVersion  string `json:"go_version"`
	CPUs       int    `json:"cpus"`
	GOMAXPROCS int    `json:"gomaxprocs"`
	QueryMode  string `json:"query_mode"`
	PoolSize   int    `json:"pool_size"`
}

const readSettings = `
SELECT n.name, coalesce(pg_catalog.current_setting(n.name, true), '(none)')
FROM pg_catalog.unnest(ARRAY[
    'shared_buffers', 'fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'wal_compression', 'wal_buffers',
    'max_wal_size', 'checkpoint_timeout', 'autovacuum', 'jit', 'default_toast_compression', 'max_connections'
]) WITH ORDINALITY n(name, ord)
ORDER BY n.ord`

// describe finds out who measures what.
func (b *bench) describe(ctx context.Context) error {
	s := &b.report.Server
	const q = `SELECT pg_catalog.version(), pg_catalog.current_setting('server_version_num')::int`
	if err := b.control.QueryRow(ctx, q).Scan(&s.Version, &s.VersionNum); err != nil {
		return err
	}
	rows, _ := b.control.Query(ctx, readSettings) // CollectRows reports Query's error
	var err error
	if s.Settings, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Setting]); err != nil {
		return err
	}
	if b.postmaster, err = findPostmaster(ctx, b.control); err != nil {
		return err
	}
	s.SameHost = b.postmaster != 0
	b.report.Client = Client{
		GoVersion:  runtime.Version(),
		CPUs:       runtime.NumCPU(),
		GOMAXPROCS: runtime.GOMAXPROCS(0),
		QueryMode:  b.config.QueryMode,
		PoolSize:   b.config.poolSize(),
	}
	return nil
}
