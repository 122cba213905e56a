package bench

import (
	"context"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// pollPhase is one consumer that asks, again and again, a subscription that has nothing.
type pollPhase struct{}

// pollWindow is how many polls lie between two looks at the WAL and at transaction ids. Those belong to the whole server,
// where others write too; a single window in which neither moved proves that polls write nothing.
const pollWindow = 100

func (p *pollPhase) title() string { return "poll" }

func (p *pollPhase) engine() bool { return true }

// prepare leaves a subscription whose topic has messages, all of them acked.
func (p *pollPhase) prepare(ctx context.Context, e *env) error {
	if err := e.createTopics(ctx, 0, fastpubsub.Filter{}); err != nil {
		return err
	}
	return e.warmUp(ctx)
}

const readWritten = `
SELECT (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
       pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint`

func (p *pollPhase) run(ctx context.Context, e *env) (tally, error) {
	latency := newLatencies()
	var polls, windows, clean, wal, xid, xids int64
	if err := e.control.QueryRow(ctx, readWritten).Scan(&wal, &xid); err != nil {
		return tally{}, err
	}
	start := time.Now()
	for time.Since(start) < e.config.Duration {
		for range pollWindow {
			before := time.Now()
			msgs, err := e.broker.Consume(ctx, warmTopic, fastpubsub.ConsumeOptions{Consumer: "poller"})
			if err != nil {
				return tally{}, err
			}
			if len(msgs) > 0 {
				return tally{}, ErrMismatch
			}
			latency.record(time.Since(before), 1)
		}
		polls += pollWindow
		windows++
		lastWAL, lastXid := wal, xid
		if err := e.control.QueryRow(ctx, readWritten).Scan(&wal, &xid); err != nil {
			return tally{}, err
		}
		xids += xid - lastXid
		if wal == lastWAL && xid == lastXid {
			clean++
		}
	}
	if clean == 0 {
		e.report.note("poll: no window of %d empty polls passed without WAL or a transaction id: polls write, or others do all the time", pollWindow)
	}
	metrics := append(latency.metrics("call"),
		Metric{"transaction ids a message", count, divide(float64(xids), float64(polls))},
		Metric{cleanWindows, ratio, divide(float64(clean), float64(windows))})
	return tally{polls, time.Since(start), metrics}, nil
}

func (p *pollPhase) check(context.Context, *env) error { return nil }
