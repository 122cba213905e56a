package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// newConfig is a small run of every workload.
func newConfig(t *testing.T) (Config, *storetest.DB) {
	t.Helper()
	db := storetest.New(t)
	pool, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Database: pool, Publishers: 2, Consumers: 3, Batch: 10, Subscriptions: 3, FilterShare: 0.1,
		Duration: 100 * time.Millisecond, Messages: 2000, Rounds: 1,
	}, db
}

func schemas(t *testing.T, db *storetest.DB) int {
	t.Helper()
	var n int
	const q = `SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname LIKE 'fastpubsub_bench_%'`
	if err := db.Pool.QueryRow(t.Context(), q).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRun does not run in parallel: it counts schemas.
func TestRun(t *testing.T) {
	config, db := newConfig(t)
	config.Rounds = 2
	config.HoldSnapshot, config.HoldWriter = true, true
	report, err := Run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if n := schemas(t, db); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
	if len(report.Workloads) != len(Workloads) {
		t.Errorf("%d workloads, want %d", len(report.Workloads), len(Workloads))
	}
	for _, w := range report.Workloads {
		for _, p := range append(w.Phases, report.Floors...) {
			for _, f := range p.Figures {
				// What divides by the messages of a quarter is missing from a round in which that quarter had none.
				missing := config.Rounds - len(f.Rounds)
				if missing < 0 || missing > 0 && !strings.Contains(f.Name, "quarter") || f.Min > f.Median || f.Median > f.Max {
					t.Errorf("%s: %s: odd figure %+v", p.Title, f.Name, f)
				}
			}
			// On a busy machine the short sustained phase may end before a consumer gets anything; what it got later was
			// checked.
			if rate := p.Figures[0]; rate.Name != messagesPerSecond || rate.Min <= 0 && w.Name != "sustained" {
				t.Errorf("%s: no messages in a round: %+v", p.Title, rate)
			}
		}
	}

	// A row of the log for each call of the backlog and of the warm-up, or fewer where calls shared one.
	calls := int64(config.Messages/config.Batch + config.Publishers*warmCalls)
	var rows int64
	for _, table := range report.Workloads[1].Phases[0].Tables {
		if table.Parent == "messages" {
			rows += table.Live
		}
	}
	if rows == 0 || rows > calls {
		t.Errorf("drain left %d rows in the log, want 1 to %d", rows, calls)
	}

	var table bytes.Buffer
	if err := report.WriteTable(&table); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"PUBLISH", "DRAIN", "SUSTAINED", "FANOUT", "FILTER", "POLL", "NACK", "FAILURES", "EXPIRY", "METRICS", "FLOORS", "x floor", "shared_buffers="} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q", want)
		}
	}
	if _, err := json.Marshal(report); err != nil {
		t.Error(err)
	}
}

// TestRunFailing looks at the figures that only workloads with failures have.
func TestRunFailing(t *testing.T) {
	config, _ := newConfig(t)
	config.Workloads = []string{"nack", "failures", "expiry", "metrics"}
	config.FailureShare = 0.05
	report, err := Run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		workload, phase int
		figure          string
		min, max        float64
	}{
		{0, 0, nacks, 2000, 2000},
		{0, 0, "nack p50", 1e-6, 60},
		{1, 0, nacks, 100, 100},
		{1, 0, "messages to those of: drain, 1 subscription, published 10 a call", 1e-3, 1e3},
		{2, 0, untilRedelivered, 1e-3, 60},
		{2, 0, "consume max", 1e-6, 60},
		{2, 1, untilSwept, 1e-3, 60},
		{3, 0, "call max", 1e-6, 60},
		{3, 1, "call max", 1e-6, 60},
		{3, 2, estimates, 0, 1},
	} {
		p := report.Workloads[test.workload].Phases[test.phase]
		i := slices.IndexFunc(p.Figures, func(f Figure) bool { return f.Name == test.figure })
		if i < 0 {
			t.Errorf("%s: there is no %q", p.Title, test.figure)
		} else if f := p.Figures[i]; f.Min < test.min || f.Max > test.max {
			t.Errorf("%s: %+v, want %v to %v", p.Title, f, test.min, test.max)
		}
	}
}

func TestRunQueryModes(t *testing.T) {
	for mode := range QueryModes {
		t.Run(mode, func(t *testing.T) {
			config, _ := newConfig(t)
			config.QueryMode = mode
			config.Workloads = []string{"drain"}
			config.Messages = 200
			if _, err := Run(t.Context(), config); err != nil {
				t.Error(err)
			}
		})
	}
}

// cancelOn cancels when it is told of some progress.
type cancelOn struct {
	text   string
	cancel context.CancelFunc
}

func (c cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		time.AfterFunc(300*time.Millisecond, c.cancel)
	}
	return len(p), nil
}

func TestRunCancelled(t *testing.T) {
	config, db := newConfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	config.Workloads = []string{"sustained"}
	config.Duration = time.Hour
	config.HoldWriter = true
	config.Progress = cancelOn{": floor", cancel}
	if _, err := Run(ctx, config); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want %v", err, context.Canceled)
	}
	if n := schemas(t, db); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Database = nil }, "database"},
		{func(c *Config) { c.Workloads = []string{"nothing"} }, "workload"},
		{func(c *Config) { c.PayloadBytes = 50 }, "payload bytes must be 112 to 1000000, not 50"},
		{func(c *Config) { c.Batch = 1001 }, "batch"},
		{func(c *Config) { c.FilterShare = 2 }, "filter share"},
		{func(c *Config) { c.FailureShare = 1 }, "failure share"},
		{func(c *Config) { c.Batch, c.PayloadBytes = 1000, 1_000_000 }, "payload bytes of a call"},
		{func(c *Config) { c.QueryMode = "none" }, "query mode"},
	} {
		config := Config{Database: new(pgxpool.Config)}
		test.change(&config)
		if err := config.complete(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error is %v, want one about %q", err, test.want)
		}
	}
}
