package bench

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Workloads are the names of what can be measured.
var Workloads = []string{"publish", "drain", "sustained", "fanout", "filter", "poll", "nack", "failures", "expiry", "metrics", "spill",
	"receive", "receive-tx", "receive-failures", "receive-steady", "wake", "waiting", "idle"}

// Config says what to measure. Only Database is required.
type Config struct {
	// Database says how to connect; the sizes of the pool are not used. The user may create schemas; one that may also
	// CHECKPOINT gets steadier figures.
	Database *pgxpool.Config `json:"-"`
	// Workloads are names from Workloads, HTTPWorkloads or GrowthWorkloads. Default all of Workloads.
	Workloads []string `json:"workloads"`
	// Publishers and Consumers are how many of each work at once, each on a connection of its own. Default 8 and 4.
	Publishers int `json:"publishers"`
	Consumers  int `json:"consumers"`
	// Batch is how many messages a call publishes, takes and acks. 1 to 1,000; default 100.
	Batch int `json:"batch"`
	// PublishBatch is how many messages a call publishes into a backlog that is drained. 1 to 10,000; default Batch.
	PublishBatch int `json:"publish_batch"`
	// Subscriptions is how many there are in the workload fanout. Default 10.
	Subscriptions int `json:"subscriptions"`
	// FilterShare is the share of messages that match in the workload filter, up to 1. Default 0.01.
	FilterShare float64 `json:"filter_share"`
	// FailureShare is the share of messages that are nacked once in the workloads failures and receive-failures, below 1. Default 0.01.
	FailureShare float64 `json:"failure_share"`
	// Duration is how long publishing is measured, and polling. Default 10 seconds. Phases that publish and do not consume
	// last a minute at most.
	Duration time.Duration `json:"-"`
	// Messages is how many deliveries a drain consists of. Default 500,000, or 100,000 if PublishBatch is below 10. The
	// workloads nack and expiry have as many, but at most 100,000, metrics has twice as many.
	Messages int `json:"messages"`
	// PayloadBytes is the exact size of each payload. 112 to 1,000,000; default 200.
	PayloadBytes int `json:"payload_bytes"`
	// Rounds is how often everything is measured, in turns. Default 3.
	Rounds int `json:"rounds"`
	// Rate limits publishing in the workload sustained, in messages a second over all publishers. Default no limit.
	Rate int `json:"rate"`
	// Backlog bounds the backlog in the workload sustained: publishers pause while it has so many messages. Default no bound.
	Backlog int `json:"backlog"`
	// Maintain lets maintenance leave a slot at this age in the workload sustained, and empty it. Default no maintenance.
	Maintain time.Duration `json:"-"`
	// GrowthScale is the share of the full sizes that GrowthWorkloads grow to, above 0 and at most 1. Default 1.
	GrowthScale float64 `json:"growth_scale"`
	// HoldSnapshot keeps an idle REPEATABLE READ transaction open while measuring, HoldWriter one that has written a row.
	HoldSnapshot bool `json:"hold_snapshot"`
	HoldWriter   bool `json:"hold_writer"`
	// QueryMode is a key of QueryModes. Default "cache_statement".
	QueryMode string `json:"query_mode"`
	// SynchronousCommit is the sessions' synchronous_commit. Default what the server has.
	SynchronousCommit string `json:"synchronous_commit,omitempty"`
	// Compression replaces that of the log's payloads: "pglz" or "lz4". Default what the migration chose.
	Compression string `json:"compression,omitempty"`
	// Command is how to run a subcommand of the program, ServerCommand or FloorCommand, as a process of its own. It needs
	// to be set for HTTPWorkloads, which use of the numbers above Duration, Messages, PayloadBytes and Rounds alone.
	Command func(subcommand string) *exec.Cmd `json:"-"`
	// Progress is told what is being measured. Default nobody.
	Progress io.Writer `json:"-"`
}

// QueryModes are pgx's query modes by the names that its connection strings have for them.
var QueryModes = map[string]pgx.QueryExecMode{
	"cache_statement": pgx.QueryExecModeCacheStatement,
	"cache_describe":  pgx.QueryExecModeCacheDescribe,
	"describe_exec":   pgx.QueryExecModeDescribeExec,
	"exec":            pgx.QueryExecModeExec,
	"simple_protocol": pgx.QueryExecModeSimpleProtocol,
}

// Check says what of c cannot be used, besides its Database.
func (c Config) Check() error {
	c.Database = new(pgxpool.Config)
	return c.complete()
}

// complete fills in the defaults and checks the whole.
func (c *Config) complete() error {
	if len(c.Workloads) == 0 {
		c.Workloads = Workloads
	}
	c.Publishers = cmp.Or(c.Publishers, 8)
	c.Consumers = cmp.Or(c.Consumers, 4)
	c.Batch = cmp.Or(c.Batch, 100)
	c.PublishBatch = cmp.Or(c.PublishBatch, c.Batch)
	c.Subscriptions = cmp.Or(c.Subscriptions, 10)
	c.FilterShare = cmp.Or(c.FilterShare, 0.01)
	c.FailureShare = cmp.Or(c.FailureShare, 0.01)
	c.GrowthScale = cmp.Or(c.GrowthScale, 1)
	c.Duration = cmp.Or(c.Duration, 10*time.Second)
	if c.Messages == 0 {
		c.Messages = 500_000
		if c.PublishBatch < 10 {
			c.Messages = 100_000
		}
	}
	c.PayloadBytes = cmp.Or(c.PayloadBytes, 200)
	c.Rounds = cmp.Or(c.Rounds, 3)
	c.QueryMode = cmp.Or(c.QueryMode, "cache_statement")
	return c.check()
}

func (c *Config) check() error {
	if c.Database == nil {
		return errors.New("no database")
	}
	for _, w := range c.Workloads {
		if all := slices.Concat(Workloads, HTTPWorkloads, GrowthWorkloads); !slices.Contains(all, w) {
			return fmt.Errorf("workload must be one of %v, not %q", all, w)
		}
	}
	for _, f := range []struct {
		name                   string
		value, lowest, highest int
	}{
		{"publishers", c.Publishers, 1, 1000},
		{"consumers", c.Consumers, 1, 1000},
		{"batch", c.Batch, 1, 1000},
		{"publish batch", c.PublishBatch, 1, 10_000},
		{"subscriptions", c.Subscriptions, 1, 10_000},
		{"messages", c.Messages, 1, 100_000_000},
		{"payload bytes", c.PayloadBytes, minPayloadBytes, 1_000_000},
		{"rounds", c.Rounds, 1, 1000},
		{"rate", c.Rate, 0, 100_000_000},
		{"backlog", c.Backlog, 0, 100_000_000},
		// A call must fit in what one publish may carry, 64 MiB.
		{"payload bytes of a call", max(c.Batch, c.PublishBatch) * c.PayloadBytes, 1, 60 << 20},
	} {
		if f.value < f.lowest || f.value > f.highest {
			return fmt.Errorf("%s must be %d to %d, not %d", f.name, f.lowest, f.highest, f.value)
		}
	}
	if !(c.FilterShare > 0 && c.FilterShare <= 1) {
		return fmt.Errorf("filter share must be above 0 and at most 1, not %v", c.FilterShare)
	}
	if !(c.FailureShare > 0 && c.FailureShare < 1) {
		return fmt.Errorf("failure share must be above 0 and below 1, not %v", c.FailureShare)
	}
	if !(c.GrowthScale > 0 && c.GrowthScale <= 1) {
		return fmt.Errorf("growth scale must be above 0 and at most 1, not %v", c.GrowthScale)
	}
	if c.Maintain < 0 {
		return fmt.Errorf("maintain must not be negative, but is %v", c.Maintain)
	}
	if c.Duration < 100*time.Millisecond {
		return fmt.Errorf("duration must be at least 100ms, not %v", c.Duration)
	}
	if _, ok := QueryModes[c.QueryMode]; !ok {
		return fmt.Errorf("query mode %q is none of pgx's", c.QueryMode)
	}
	if !slices.Contains([]string{"", "lz4", "pglz"}, c.Compression) {
		return fmt.Errorf("compression must be lz4 or pglz, not %q", c.Compression)
	}
	return nil
}

// poolSize is a connection for everybody who works at the same time.
func (c *Config) poolSize() int {
	return max(c.Publishers+c.Consumers+2, receiveConcurrency+4) // 2 for maintenance and looks; the others fetch, ack and poll
}
