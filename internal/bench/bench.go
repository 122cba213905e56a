// Package bench measures fastpubsub on a PostgreSQL server, and beside it the floor: what the same server does, in the
// same minutes, with the simplest thing that stores the same payloads.
//
//	CREATE TABLE floor (id bigserial PRIMARY KEY, payload jsonb NOT NULL)
//	INSERT INTO floor (payload) SELECT unnest($1::jsonb[])
//
// A workload consists of phases. Each phase starts with a schema of its own, connections that are warm, and a
// checkpoint; rounds repeat all phases in turn, floors among them, so that what changes on the machine meanwhile
// changes all of them. Figures are the medians of the rounds.
package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/migrations"
)

// dropTimeout bounds the tidying up, which goes on after ctx was cancelled.
const dropTimeout = time.Minute

type bench struct {
	config     Config
	pool       *pgxpool.Config // of each phase
	control    *pgx.Conn       // for what is not measured
	postmaster postmaster
	schema     string
	report     *Report
}

// Run measures what config says. It works in a schema that it makes, fastpubsub_bench_ and a random number, and drops it
// when it ends, also when ctx is cancelled; it waits up to a minute for that.
//
// It returns ErrMismatch, wrapped with the phase and the counts, if a consumer did not get what was published.
func Run(ctx context.Context, config Config) (_ *Report, err error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	b := &bench{
		config: config,
		pool:   config.Database.Copy(),
		report: &Report{Started: time.Now().UTC(), Config: config, Seconds: config.Duration.Seconds()},
	}
	if config.SynchronousCommit != "" {
		b.pool.ConnConfig.RuntimeParams["synchronous_commit"] = config.SynchronousCommit
	}
	if b.control, err = pgx.ConnectConfig(ctx, b.pool.ConnConfig.Copy()); err != nil {
		return nil, err
	}
	defer b.control.Close(context.WithoutCancel(ctx))

	var random [6]byte
	_, _ = rand.Read(random[:]) // never fails
	b.schema = "fastpubsub_bench_" + hex.EncodeToString(random[:])
	b.pool.ConnConfig.RuntimeParams["application_name"] = b.schema
	b.pool.ConnConfig.DefaultQueryExecMode = QueryModes[config.QueryMode]
	b.pool.MaxConns = int32(config.poolSize())
	b.pool.MinConns = 0

	if err := b.describe(ctx); err != nil {
		return nil, err
	}
	if _, err := b.control.Exec(ctx, "CREATE SCHEMA "+b.quotedSchema()); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, b.dropForGood(context.WithoutCancel(ctx)))
	}()
	if err := b.rounds(ctx); err != nil {
		return nil, err
	}
	return b.report, nil
}

func (b *bench) quotedSchema() string { return pgx.Identifier{b.schema}.Sanitize() }

// dropForGood uses a connection of its own: cancelling ctx closes the others.
func (b *bench) dropForGood(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dropTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, b.pool.ConnConfig.Copy())
	if err != nil {
		return fmt.Errorf("drop schema %s: %w", b.schema, err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "DROP SCHEMA IF EXISTS "+b.quotedSchema()+" CASCADE"); err != nil {
		return fmt.Errorf("drop schema %s: %w", b.schema, err)
	}
	return nil
}

// rounds runs the phases of all workloads, each once a round even if several workloads need it, and reports.
func (b *bench) rounds(ctx context.Context) error {
	plan := b.config.plan()
	phases := distinct(plan)
	samples := make(map[string][]sample, len(phases))
	for round := range b.config.Rounds {
		for _, p := range phases {
			if b.config.Progress != nil {
				fmt.Fprintf(b.config.Progress, "round %d of %d: %s\n", round+1, b.config.Rounds, p.title())
			}
			s, err := b.measure(ctx, p)
			if err != nil {
				return fmt.Errorf("round %d: %s: %w", round+1, p.title(), err)
			}
			samples[p.title()] = append(samples[p.title()], s)
		}
	}
	b.report.fill(plan, samples)
	return nil
}

// fresh replaces the schema by one without data, with the engine in it or just the floor's table.
func (b *bench) fresh(ctx context.Context, engine bool) error {
	schema := b.quotedSchema()
	if _, err := b.control.Exec(ctx, "DROP SCHEMA "+schema+" CASCADE; CREATE SCHEMA "+schema); err != nil {
		return err
	}
	if b.config.HoldWriter {
		if _, err := b.control.Exec(ctx, "CREATE TABLE "+schema+".held (id int)"); err != nil {
			return err
		}
	}
	if !engine {
		_, err := b.control.Exec(ctx, "CREATE TABLE "+schema+".floor (id bigserial PRIMARY KEY, payload jsonb NOT NULL)")
		return err
	}
	if err := migrations.Up(ctx, b.pool.ConnConfig.Copy(), b.schema); err != nil {
		return err
	}
	return b.setCompression(ctx)
}

const payloadPartitions = `
SELECT c.oid::regclass::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = pg_catalog.to_regnamespace($1) AND c.relkind = 'r' AND a.attname = 'payloads'`

func (b *bench) setCompression(ctx context.Context) error {
	if b.config.Compression == "" {
		return nil
	}
	rows, _ := b.control.Query(ctx, payloadPartitions, b.quotedSchema()) // CollectRows reports Query's error
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, table := range tables {
		if _, err := b.control.Exec(ctx, "ALTER TABLE "+table+" ALTER payloads SET COMPRESSION "+b.config.Compression); err != nil {
			return err
		}
	}
	return nil
}
