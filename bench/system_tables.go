package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

const (
	takeBatch = 100 // messages that a consumer which asks for batches takes at once
	consumers = 4   // of those, of a group that is alone
	pollPause = 10 * time.Millisecond
)

// floorSystem is what one compares with: the simplest thing that stores the same payloads.
var floorSystem = &system{
	name:  "floor",
	floor: true,
	contract: contract{
		Publish:    "INSERT INTO floor (payload) SELECT unnest($1::jsonb[]), a table with a bigserial key",
		Consume:    "none",
		Ack:        "none",
		Durability: sameDurability,
	},
	open: func(ctx context.Context, o opening) (session, error) {
		return openTable(ctx, o, "floor")
	},
}

// skipLockedSystem is what many write for themselves.
var skipLockedSystem = &system{
	name: "skip-locked",
	peer: true,
	contract: contract{
		Publish: "the floor's INSERT",
		Consume: "4 consumers, each DELETE ... WHERE id IN (SELECT ... ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 100) RETURNING; " +
			"10 ms between looks that find nothing",
		Ack:        "a batch at once: the commit of the DELETE, after handling. A message has no history, no attempts, no dead letters",
		Durability: sameDurability,
	},
	open: func(ctx context.Context, o opening) (session, error) {
		return openTable(ctx, o, "queue")
	},
}

type tableSession struct {
	goSession
	table string
	retry bool
}

func openTable(ctx context.Context, o opening, table string) (session, error) {
	pool, err := newPool(ctx, o.url, o.clients+consumers+1)
	if err != nil {
		return nil, err
	}
	s := &tableSession{goSession{pool: pool}, table, o.retry}
	insert := "INSERT INTO " + table + " (payload) SELECT unnest($1::jsonb[])"
	s.send = func(ctx context.Context, _ int, payloads [][]byte) error {
		_, err := pool.Exec(ctx, insert, texts(payloads))
		return err
	}
	if _, err := pool.Exec(ctx, "CREATE TABLE "+table+" (id bigserial PRIMARY KEY, payload jsonb NOT NULL)"); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

func (s *tableSession) stored(ctx context.Context) (int64, error) {
	return s.count(ctx, "SELECT count(*) FROM "+s.table)
}

func (s *tableSession) consume(ctx context.Context, got *received) error {
	take := "DELETE FROM " + s.table + " WHERE id IN (SELECT id FROM " + s.table +
		" ORDER BY id FOR UPDATE SKIP LOCKED LIMIT $1) RETURNING payload"
	var g errgroup.Group
	for range consumers {
		g.Go(func() error {
			return poll(ctx, s.retry, func(ctx context.Context) (n int, err error) {
				err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
					rows, _ := tx.Query(ctx, take, takeBatch) // CollectRows reports Query's error
					payloads, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
					for _, p := range payloads {
						got.message(0, p)
					}
					n = len(payloads)
					return err
				})
				return n, err
			})
		})
	}
	return g.Wait()
}

// poll calls take until ctx ends, with a pause after one that took nothing. What it has begun it ends.
func poll(ctx context.Context, retry bool, take func(ctx context.Context) (int, error)) error {
	for ctx.Err() == nil {
		n, err := take(context.WithoutCancel(ctx))
		switch {
		case err != nil && !retry:
			return err
		case err != nil:
			_ = pause(ctx, retryPause) // then the loop ends
		case n == 0:
			_ = pause(ctx, pollPause)
		}
	}
	return nil
}
