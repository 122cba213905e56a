package bench

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Table is one table, or one partition, after a measured phase. What warming up wrote is in it, ten calls of each worker.
type Table struct {
	Name        string `json:"name"`
	Parent      string `json:"parent"` // the partitioned table, else Name
	Live        int64  `json:"live_tuples"`
	Dead        int64  `json:"dead_tuples"`
	HeapBytes   int64  `json:"heap_bytes"`
	ToastBytes  int64  `json:"toast_bytes"` // its index included
	IndexBytes  int64  `json:"index_bytes"`
	Compression string `json:"payload_compression,omitempty"`
}

// Bytes is all that the table takes.
func (t Table) Bytes() int64 { return t.HeapBytes + t.ToastBytes + t.IndexBytes }

// readTables lists what holds rows. A column whose compression was not set has the server's default.
const readTables = `
SELECT c.relname AS name, coalesce(p.relname, c.relname) AS parent,
       coalesce(s.n_live_tup, 0) AS live, coalesce(s.n_dead_tup, 0) AS dead,
       pg_catalog.pg_table_size(c.oid) - toast.bytes AS heap_bytes, toast.bytes AS toast_bytes,
       pg_catalog.pg_indexes_size(c.oid) AS index_bytes,
       coalesce((
           SELECT CASE a.attcompression WHEN 'l' THEN 'lz4' WHEN 'p' THEN 'pglz'
                  ELSE pg_catalog.current_setting('default_toast_compression') END
           FROM pg_catalog.pg_attribute a
           WHERE a.attrelid = c.oid AND a.attname IN ('payload', 'payloads')
       ), '') AS compression
FROM pg_catalog.pg_class c
LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid
LEFT JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
LEFT JOIN pg_catalog.pg_stat_user_tables s ON s.relid = c.oid
CROSS JOIN LATERAL (
    SELECT CASE c.reltoastrelid WHEN 0 THEN 0 ELSE pg_catalog.pg_total_relation_size(c.reltoastrelid) END AS bytes
) toast
WHERE c.relnamespace = pg_catalog.to_regnamespace($1) AND c.relkind = 'r'
ORDER BY c.relname COLLATE "C"`

// countSessions finds out when the phase's connections are gone: that is when they have told the last of their statistics.
const countSessions = `SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE application_name = $1`

// tables waits, for a few seconds at most, until the statistics of a phase are complete, and reads them. The pool must be closed.
func (b *bench) tables(ctx context.Context) ([]Table, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		var sessions int
		if err := b.control.QueryRow(ctx, countSessions, b.schema).Scan(&sessions); err != nil {
			return nil, err
		}
		if sessions == 0 {
			break
		}
		if err := pause(ctx, tick.C); err != nil {
			return nil, err
		}
	}
	if b.report.Server.major() < 15 { // statistics go through a collector, which writes them out when it likes
		if err := pause(ctx, time.After(time.Second)); err != nil {
			return nil, err
		}
	}
	rows, _ := b.control.Query(ctx, readTables, b.quotedSchema()) // CollectRows reports Query's error
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Table])
}

func pause(ctx context.Context, c <-chan time.Time) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tableMetrics sums up what the tables say.
func tableMetrics(tables []Table, messages int64) []Metric {
	var dead, bytes int64
	for _, t := range tables {
		dead += t.Dead
		bytes += t.Bytes()
	}
	return []Metric{
		{"dead tuples a message", count, divide(float64(dead), float64(messages))},
		{"size a message", bytesUnit, divide(float64(bytes), float64(messages))},
	}
}
