package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file is for the benchmark beside other systems, which is a module of its own: it measures with the same means.

// A Meter reads what a server has used between two moments.
type Meter struct {
	b      *bench
	before usage
}

// NewMeter reads with conn, which must not be used by others meanwhile.
func NewMeter(ctx context.Context, conn *pgx.Conn) (*Meter, error) {
	m := &Meter{b: &bench{control: conn, report: &Report{}}}
	if err := m.b.describe(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// Server says what is measured.
func (m *Meter) Server() Server { return m.b.report.Server }

// Start makes a checkpoint, so that full-page images start anew, and begins to measure.
func (m *Meter) Start(ctx context.Context) (err error) {
	if err := m.b.checkpoint(ctx); err != nil {
		return err
	}
	m.before, err = m.b.readUsage(ctx, true)
	return err
}

// Stop returns what was used since Start, by the server and by this process, for each message.
func (m *Meter) Stop(ctx context.Context, messages int64) ([]Metric, error) {
	after, err := m.b.readUsage(ctx, false)
	if err != nil {
		return nil, err
	}
	return m.b.usageMetrics(m.before, after, messages), nil
}

// Tables lists the tables of a schema, whose name need not be quoted.
func (m *Meter) Tables(ctx context.Context, schema string) ([]Table, error) {
	rows, _ := m.b.control.Query(ctx, readTables, pgx.Identifier{schema}.Sanitize()) // CollectRows reports Query's error
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Table])
}

// TableMetrics sums up what the tables say, for each message.
func TableMetrics(tables []Table, messages int64) []Metric { return tableMetrics(tables, messages) }

// ProcessCPU returns what a process on this machine has used, with its children that have ended; 0 where that is not known.
func ProcessCPU(pid int) time.Duration {
	stat, err := readStat(pid)
	if err != nil {
		return 0
	}
	return time.Duration(stat.own+stat.children) * time.Second / ticksPerSecond
}

// Latencies counts durations. It is used by one goroutine at a time.
type Latencies struct{ l latencies }

// NewLatencies returns an empty one.
func NewLatencies() Latencies { return Latencies{newLatencies()} }

// Record counts a duration once.
func (l Latencies) Record(d time.Duration) { l.l.record(d, 1) }

// Count returns how many were recorded.
func (l Latencies) Count() int64 { return l.l.h.TotalCount() }

// Metrics returns the percentiles of what was recorded.
func (l Latencies) Metrics(name string) []Metric { return l.l.metrics(name) }

// NewPayload returns a JSON object of size bytes; the same rng gives the same.
func NewPayload(rng *rand.ChaCha8, size int) ([]byte, error) {
	if size < minPayloadBytes {
		return nil, fmt.Errorf("payload must have at least %d bytes, not %d", minPayloadBytes, size)
	}
	return newPayload(rng, size), nil
}

// StampPayload writes a number and a time, in nanoseconds, into a payload of NewPayload. They are the members "number" and
// "sent", both 16 hexadecimal digits.
func StampPayload(p []byte, number, sentNanos int64) {
	setNumber(p, number)
	setSent(p, sentNanos)
}

// PerSecond, Seconds, Bytes, Count and Ratio are units of metrics.
const (
	PerSecond = perSecond
	Seconds   = seconds
	Bytes     = bytesUnit
	Count     = count
	Ratio     = ratio
)

// NewFigure makes a figure of a metric's values, one a round.
func NewFigure(name, unit string, values []float64) Figure { return newFigure(name, unit, values) }

// FormatValue writes a value with three or four digits that count and its unit.
func FormatValue(v float64, unit string) string { return format(v, unit) }

// Median returns 0 for no values.
func Median(values []float64) float64 { return median(values) }
