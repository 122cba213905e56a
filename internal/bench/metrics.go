package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// metricsPhase asks for the metrics of a subscription with a backlog.
type metricsPhase struct {
	backlog      int
	publishBatch int     // 1: the rows are inserted without Publish, which would take longer than all the rest
	share        float64 // of the messages that match; 0 is no filter
}

// metricsCalls is how often it asks.
const metricsCalls = 20

func (p *metricsPhase) title() string {
	if p.share > 0 {
		return fmt.Sprintf("metrics, filter that matches %.3g %%", 100*p.share)
	}
	return fmt.Sprintf("metrics, published %d a call", p.publishBatch)
}

func (p *metricsPhase) engine() bool { return true }

func (p *metricsPhase) prepare(ctx context.Context, e *env) error {
	var filter fastpubsub.Filter
	if p.share > 0 {
		var err error
		if filter, err = fastpubsub.ParseFilter([]byte(filterJSON)); err != nil {
			return err
		}
	}
	if err := e.createTopics(ctx, 1, filter); err != nil {
		return err
	}
	if err := e.warmUp(ctx); err != nil {
		return err
	}
	for range warmCalls {
		if _, err := e.broker.Metrics(ctx, warmTopic); err != nil {
			return err
		}
	}
	if p.publishBatch == 1 {
		return p.insert(ctx, e)
	}
	return e.fill(ctx, p.backlog, p.publishBatch, p.share)
}

// insert writes the rows that Publish would for messages one by one. They have the same payload, and all of one statement
// the same transaction: nobody consumes them.
func (p *metricsPhase) insert(ctx context.Context, e *env) error {
	const rows = 10_000 // of a statement
	schema := e.quotedSchema()
	sql := `
INSERT INTO ` + schema + `.messages (xid, base, created_at, topic_num, n, slot, payloads)
SELECT pg_current_xact_id()::text::bigint, nextval('` + schema + `.message_base') << 16, clock_timestamp(), t.num, 1,
       s.last_value & 3, ARRAY[$2]
FROM ` + schema + `.topics t, ` + schema + `.message_slot s, generate_series(1, $3)
WHERE t.id = $1`
	payload := string(newPayload(rand.NewChaCha8([32]byte{seed}), e.config.PayloadBytes))
	return workers(ctx, e.config.Publishers, func(ctx context.Context, _ int) error {
		for {
			n := min(rows, p.backlog-int(e.next.Add(rows)-rows))
			if n <= 0 {
				return nil
			}
			if _, err := e.pool.Exec(ctx, sql, topic, payload, n); err != nil {
				return err
			}
		}
	})
}

func (p *metricsPhase) run(ctx context.Context, e *env) (tally, error) {
	latency := newLatencies()
	estimated, want := 0, p.available()
	start := time.Now()
	for range metricsCalls {
		before := time.Now()
		m, err := e.broker.Metrics(ctx, subscription(0))
		if err != nil {
			return tally{}, err
		}
		latency.record(time.Since(before), 1)
		if m.Estimated {
			estimated++
		} else if m.Available != want {
			return tally{}, fmt.Errorf("%w: metrics say that %d are available, not %d", ErrMismatch, m.Available, want)
		}
	}
	metrics := latency.metrics("call")
	if p.share > 0 {
		metrics = append(metrics, Metric{estimates, ratio, float64(estimated) / metricsCalls})
	}
	return tally{metricsCalls, time.Since(start), metrics}, nil
}

func (p *metricsPhase) available() int64 {
	if p.share == 0 {
		return int64(p.backlog)
	}
	var n int64
	for i := range int64(p.backlog) {
		if matches(i, p.share) {
			n++
		}
	}
	return n
}

func (p *metricsPhase) check(context.Context, *env) error { return nil }
