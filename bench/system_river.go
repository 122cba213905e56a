package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// What River's own benchmark sets, since the defaults are for few jobs that take long: at most 100 a fetch and 10 fetches
// a second, say.
const (
	riverWorkers  = 2_000
	riverCooldown = 2 * time.Millisecond
	riverPoll     = 20 * time.Millisecond
	riverStop     = 30 * time.Second
)

var riverSystem = &system{
	name: "river",
	peer: true,
	contract: contract{
		Publish: "Client.Insert for one, Client.InsertManyFast (COPY) for more; a job for each group",
		Consume: "one client with 2,000 workers, FetchCooldown 2 ms, FetchPollInterval 20 ms, as in River's own benchmark",
		Ack: "each job by itself, after its worker has returned; the client completes many at once, in the background. At least once; " +
			"completed jobs stay in the table, for a day by default. A job whose worker has died comes again after an hour",
		Durability: sameDurability,
	},
	open: openRiver,
}

// A riverJob is a payload.
type riverJob struct{ json.RawMessage }

func (riverJob) Kind() string { return "bench" }

type riverSession struct {
	goSession
	driver *riverpgxv5.Driver
}

func openRiver(ctx context.Context, o opening) (_ session, err error) {
	pool, err := newPool(ctx, o.url, o.clients+16)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	s := &riverSession{goSession{pool: pool}, riverpgxv5.New(pool)}
	logger := slog.New(slog.DiscardHandler)
	migrator, err := rivermigrate.New(s.driver, &rivermigrate.Config{Logger: logger})
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, err
	}
	client, err := river.NewClient[pgx.Tx](s.driver, &river.Config{Logger: logger})
	if err != nil {
		return nil, err
	}
	s.send = func(ctx context.Context, _ int, payloads [][]byte) error {
		if len(payloads) == 1 {
			_, err := client.Insert(ctx, riverJob{payloads[0]}, nil)
			return err
		}
		params := make([]river.InsertManyParams, len(payloads))
		for i, p := range payloads {
			params[i].Args = riverJob{p}
		}
		_, err := client.InsertManyFast(ctx, params)
		return err
	}
	return s, nil
}

func (s *riverSession) stored(ctx context.Context) (int64, error) {
	return s.count(ctx, "SELECT count(*) FROM river_job WHERE state = 'available'")
}

func (s *riverSession) consume(ctx context.Context, got *received) error {
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(_ context.Context, job *river.Job[riverJob]) error {
		got.message(0, job.Args.RawMessage)
		return nil
	}))
	client, err := river.NewClient[pgx.Tx](s.driver, &river.Config{
		FetchCooldown:     riverCooldown,
		FetchPollInterval: riverPoll,
		Logger:            slog.New(slog.DiscardHandler),
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: riverWorkers}},
		Workers:           workers,
	})
	if err != nil {
		return err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), riverStop)
	defer cancel()
	return client.Stop(stopping)
}
