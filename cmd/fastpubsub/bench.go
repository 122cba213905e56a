package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime/pprof"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/internal/bench"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// benchCommand measures publishing and consuming beside what the same server does with plain inserts.
type benchCommand struct {
	DatabaseURL   string            `env:"FASTPUBSUB_DATABASE_URL" placeholder:"URL" help:"The database to measure in. Default: a throw-away server, durable, from PostgreSQL binaries on this machine."`
	ServerSetting map[string]string `placeholder:"NAME=VALUE" help:"A parameter of the throw-away server. Can be repeated."`

	HTTP          bool          `name:"http" help:"Measure the REST server, a process of its own, in place of the library: all workloads that begin with http."`
	Growth        bool          `help:"Measure what a message costs while something grows: all workloads that begin with growth. Full sizes take a quarter of an hour with --rounds 1."`
	GrowthScale   float64       `default:"1" help:"Share of the full sizes that workloads which begin with growth grow to."`
	Workload      []string      `default:"all" enum:"publish,drain,sustained,fanout,filter,poll,nack,failures,expiry,metrics,spill,receive,receive-tx,receive-failures,receive-steady,wake,waiting,idle,http-publish,http-batch,http-consume,http-latency,http-memory,http-start,growth-backlog,growth-dead-letters,growth-topics,growth-subscriptions,growth-elsewhere,growth-fanout,growth-payload,growth-connections,all" help:"What to measure: ${enum}."`
	Publishers    int           `default:"8" help:"Publishers at work at the same time."`
	Consumers     int           `default:"4" help:"Consumers at work at the same time."`
	Batch         int           `default:"100" help:"Messages published, or consumed and acked, by a call."`
	PublishBatch  int           `placeholder:"BATCH" help:"Messages published by a call into the backlog of a drain. Default: as --batch."`
	Subscriptions int           `default:"10" help:"Subscriptions in the workload fanout."`
	FilterShare   float64       `default:"0.01" help:"Share of messages that match in the workload filter."`
	FailureShare  float64       `default:"0.01" help:"Share of messages that are nacked once in the workloads failures and receive-failures."`
	Duration      time.Duration `default:"10s" help:"How long each phase is measured that does not end by itself."`
	Messages      int           `placeholder:"N" help:"Deliveries that a drain consists of; at most 100,000 of them in nack and expiry, twice as many messages in metrics. Default: 500,000, or 100,000 if published fewer than 10 a call."`
	PayloadBytes  int           `default:"200" help:"Exact size of a payload."`
	Rounds        int           `default:"3" help:"How often everything is measured, in turns."`
	Rate          int           `placeholder:"N" help:"Messages a second that the workload sustained publishes at most. Default: no limit."`
	Backlog       int           `placeholder:"N" help:"Messages that the workload sustained lets wait at most; then its publishers pause. Default: no limit."`
	Maintain      time.Duration `placeholder:"AGE" help:"Let maintenance run in the workload sustained, which leaves a slot at that age. Default: none."`

	HoldSnapshot      bool   `help:"Keep an idle transaction with a snapshot open while measuring."`
	HoldWriter        bool   `help:"Keep an idle transaction that has written a row open while measuring."`
	QueryMode         string `default:"cache_statement" enum:"cache_statement,cache_describe,describe_exec,exec,simple_protocol" help:"pgx's query mode: ${enum}."`
	SynchronousCommit string `default:"" enum:",on,off" help:"The sessions' synchronous_commit, on or off. Publishing raises off to local. Default: the server's."`
	Compression       string `default:"" enum:",lz4,pglz" help:"Compression of the log's payloads, lz4 or pglz. Default: what the migration chose."`

	Plots      string `type:"path" placeholder:"DIR" help:"Draw a curve of each workload that begins with growth into this folder, as SVG."`
	Write      string `type:"path" placeholder:"FILE" help:"Put the figures of workloads that begin with growth into this Markdown file, between its two lines for them, and their plots into the folder beside it that has its name: docs/growth.md."`
	JSON       bool   `name:"json" help:"Print one JSON document instead of tables."`
	CPUProfile string `name:"cpu-profile" type:"path" placeholder:"FILE" help:"Write a CPU profile of this process, for go tool pprof."`
}

// benchServer are parameters of the throw-away server: room enough that checkpoints and cache misses do not decide.
var benchServer = map[string]string{
	"shared_buffers":  "512MB",
	"max_wal_size":    "4GB",
	"max_connections": "200",
}

// Run implements the subcommand. What it made on the server is gone when it returns, also after a signal.
func (c *benchCommand) Run(p *process) (err error) {
	config := c.config(p)
	var bad badSettings
	if c.DatabaseURL != "" {
		config.Database = parseURL(&bad, "FASTPUBSUB_DATABASE_URL", c.DatabaseURL)
	}
	if err := config.Check(); err != nil {
		bad = append(bad, err.Error())
	}
	if (c.Plots != "" || c.Write != "") && !slices.ContainsFunc(config.Workloads, isGrowth) {
		bad = append(bad, "--plots and --write are for workloads that begin with growth: --growth measures all of them")
	}
	if err := bad.err(); err != nil {
		return err
	}
	if c.CPUProfile != "" {
		f, err := os.Create(c.CPUProfile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}

	if config.Database == nil {
		settings := maps.Clone(benchServer)
		maps.Copy(settings, c.ServerSetting)
		srv, startErr := pgserver.Start(p.ctx, pgserver.Options{Durable: true, Settings: settings})
		if startErr != nil {
			return fmt.Errorf("FASTPUBSUB_DATABASE_URL is not set, and %w", startErr)
		}
		defer func() { err = errors.Join(err, srv.Stop()) }()
		if config.Database, err = pgxpool.ParseConfig(srv.URL()); err != nil {
			return err
		}
	}
	report, err := bench.Run(p.ctx, config)
	if p.ctx.Err() != nil && !errors.Is(err, bench.ErrMismatch) {
		return errors.New("interrupted")
	}
	if err != nil {
		return err
	}
	if c.Plots != "" {
		if err := report.WriteGrowthPlots(c.Plots); err != nil {
			return err
		}
	}
	if c.Write != "" {
		if err := report.WriteGrowth(c.Write); err != nil {
			return err
		}
	}
	if c.JSON {
		encoder := json.NewEncoder(p.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	}
	return report.WriteTable(p.stdout)
}

func (c *benchCommand) config(p *process) bench.Config {
	config := bench.Config{
		Publishers:        c.Publishers,
		Consumers:         c.Consumers,
		Batch:             c.Batch,
		PublishBatch:      c.PublishBatch,
		Subscriptions:     c.Subscriptions,
		FilterShare:       c.FilterShare,
		FailureShare:      c.FailureShare,
		Duration:          c.Duration,
		Messages:          c.Messages,
		PayloadBytes:      c.PayloadBytes,
		Rounds:            c.Rounds,
		Rate:              c.Rate,
		Backlog:           c.Backlog,
		Maintain:          c.Maintain,
		GrowthScale:       c.GrowthScale,
		HoldSnapshot:      c.HoldSnapshot,
		HoldWriter:        c.HoldWriter,
		QueryMode:         c.QueryMode,
		SynchronousCommit: c.SynchronousCommit,
		Compression:       c.Compression,
		Command:           subcommand,
		Progress:          p.stderr,
	}
	for _, w := range c.Workload {
		if w == "all" {
			config.Workloads = nil
			if c.HTTP {
				config.Workloads = append(config.Workloads, bench.HTTPWorkloads...)
			}
			if c.Growth {
				config.Workloads = append(config.Workloads, bench.GrowthWorkloads...)
			}
			break
		}
		config.Workloads = append(config.Workloads, w)
	}
	return config
}

func isGrowth(workload string) bool { return slices.Contains(bench.GrowthWorkloads, workload) }

// subcommand is this program again, with a subcommand.
func subcommand(name string) *exec.Cmd {
	program, err := os.Executable()
	if err != nil { // then it can be found by its name, or the start fails
		program = os.Args[0]
	}
	return exec.Command(program, name)
}

// benchFloorCommand serves the floor of workloads over HTTP.
type benchFloorCommand struct {
	databaseFlags `embed:""`
	poolFlags     `embed:""`
	apiFlags      `embed:""`
}

// Run implements the subcommand.
func (c *benchFloorCommand) Run(p *process) error {
	var bad badSettings
	config := c.pool(&bad, c.poolFlags)
	settings := c.settings(&bad)
	schema := c.schema(&bad)
	if err := bad.err(); err != nil {
		return err
	}
	pool, err := pgxpool.NewWithConfig(p.ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	return bench.ServeFloor(p.ctx, pool, schema, settings.address)
}
