package bench

import (
	"context"
	"fmt"
)

// floorPhase is what one compares with: batches of payloads into a table with a key, at full speed.
type floorPhase struct {
	workers, batch int
	payloads       [][][]string // of each worker and call
}

func (p *floorPhase) title() string { return fmt.Sprintf("floor, %d x %d", p.workers, p.batch) }

func (p *floorPhase) engine() bool { return false }

func (p *floorPhase) prepare(ctx context.Context, e *env) error {
	p.payloads = make([][][]string, p.workers)
	for i, supply := range e.supplies(p.workers, p.batch) {
		for range supply.calls {
			first := e.next.Add(int64(p.batch)) - int64(p.batch)
			var call []string
			for _, msg := range supply.take(first, p.batch, 0, 0) {
				call = append(call, string(msg.Payload))
			}
			p.payloads[i] = append(p.payloads[i], call)
		}
	}
	insert := p.insert(e)
	return workers(ctx, p.workers, func(ctx context.Context, i int) error {
		for range warmCalls {
			if err := insert(ctx, i); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *floorPhase) insert(e *env) func(ctx context.Context, i int) error {
	sql := "INSERT INTO " + e.quotedSchema() + ".floor (payload) SELECT unnest($1::jsonb[])"
	next := make([]int, p.workers)
	return func(ctx context.Context, i int) error {
		call := p.payloads[i][next[i]]
		next[i] = (next[i] + 1) % len(p.payloads[i])
		_, err := e.pool.Exec(ctx, sql, call)
		return err
	}
}

func (p *floorPhase) run(ctx context.Context, e *env) (tally, error) {
	return e.atFullSpeed(ctx, p.workers, p.batch, p.insert(e))
}

func (p *floorPhase) check(context.Context, *env) error { return nil }
