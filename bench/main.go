// This program measures fastpubsub side by side with other ways to have queues or publish/subscribe on PostgreSQL, and with
// the floor: bare INSERTs into a plain table. README.md tells how, and what the figures are of.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// options are the flags. Zero means the default of a full run, or of a quick one.
type options struct {
	Systems   []string      `help:"Only these systems: ${systems}." placeholder:"NAME"`
	Workloads []string      `help:"Only these workloads: ${workloads}." placeholder:"NAME"`
	Quick     bool          `help:"A run of about three minutes that shows that everything works. Its figures are worth little."`
	Rounds    int           `help:"How often everything is measured, in turns. Default 3, quick 1. The workloads pinned, writer and restart are measured once."`
	Duration  time.Duration `help:"How long a timed phase publishes. Default 3s, quick 500ms."`
	Backlog   int64         `help:"Messages of a drain. Default 50000, quick 3000."`
	Pinned    time.Duration `help:"How long the snapshot is held in the workload pinned. Default 1m, quick 4s."`
	Writer    time.Duration `help:"How long the transaction is open in the workload writer. Default 10s, quick 2s."`
	Restart   time.Duration `help:"How long the workload restart publishes. Default 9s, quick 3s."`
	Clients   int           `help:"Clients that publish at the same time." default:"8"`
	Window    int           `help:"How many deliveries may be on their way before publishers wait." default:"10000"`
	PGBin     string        `name:"pg-bin" help:"Directory of the PostgreSQL binaries. Default the newest on this machine." type:"existingdir"`
	JSON      string        `help:"Write the report here as JSON." type:"path" placeholder:"FILE"`
	Plots     string        `help:"Write plots, SVG files, into this directory." type:"path" placeholder:"DIR"`
	Write     bool          `help:"Write the results into this module: results/ and the table in README.md."`
	FromJSON  string        `name:"from-json" help:"Measure nothing: make the outputs of this report." type:"existingfile" placeholder:"FILE"`
}

func (o *options) complete() error {
	full := func(whole, quick time.Duration) time.Duration {
		if o.Quick {
			return quick
		}
		return whole
	}
	set := func(d *time.Duration, whole, quick time.Duration) {
		if *d == 0 {
			*d = full(whole, quick)
		}
	}
	set(&o.Duration, 3*time.Second, 500*time.Millisecond)
	set(&o.Pinned, time.Minute, 4*time.Second)
	set(&o.Writer, 10*time.Second, 2*time.Second)
	set(&o.Restart, 9*time.Second, 3*time.Second)
	if o.Backlog == 0 {
		o.Backlog = 50_000
		if o.Quick {
			o.Backlog = 3_000
		}
	}
	if o.Rounds == 0 {
		o.Rounds = 3
		if o.Quick {
			o.Rounds = 1
		}
	}
	return o.check()
}

func (o *options) check() error {
	for _, f := range []struct {
		name            string
		lowest, highest int64
		value           int64
	}{
		{"rounds", 1, 1000, int64(o.Rounds)},
		{"backlog", 1, biggestNumber / 2, o.Backlog},
		{"clients", 1, 100, int64(o.Clients)},
		{"window", 1, 10_000_000, int64(o.Window)},
	} {
		if f.value < f.lowest || f.value > f.highest {
			return fmt.Errorf("%s must be %d to %d, not %d", f.name, f.lowest, f.highest, f.value)
		}
	}
	for name, d := range map[string]time.Duration{
		"duration": o.Duration, "pinned": o.Pinned, "writer": o.Writer, "restart": o.Restart,
	} {
		if d < 100*time.Millisecond || d > time.Hour {
			return fmt.Errorf("%s must be 100ms to 1h, not %v", name, d)
		}
	}
	for _, name := range o.Systems {
		if !slices.Contains(systemNames(), name) {
			return fmt.Errorf("system must be one of %s, not %q", strings.Join(systemNames(), ", "), name)
		}
	}
	for _, name := range o.Workloads {
		if !slices.Contains(workloads, name) {
			return fmt.Errorf("workload must be one of %s, not %q", strings.Join(workloads, ", "), name)
		}
	}
	return nil
}

func main() {
	var o options
	k := kong.Parse(&o, kong.Description("Measures fastpubsub side by side with other queues on PostgreSQL."), kong.Vars{
		"systems":   strings.Join(systemNames(), ", "),
		"workloads": strings.Join(workloads, ", "),
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k.FatalIfErrorf(run(ctx, &o))
}

// errFailed means that some phases could not be measured, as the report says.
var errFailed = errors.New("some phases failed: see the notes")

func run(ctx context.Context, o *options) error {
	if err := o.complete(); err != nil {
		return err
	}
	dir, err := moduleDir()
	if err != nil {
		return err
	}
	report, err := measure(ctx, o)
	if err != nil {
		return err
	}
	if err := report.writeTable(os.Stdout); err != nil {
		return err
	}
	if o.JSON != "" {
		if err := report.writeJSON(o.JSON); err != nil {
			return err
		}
	}
	if o.Plots != "" {
		if err := report.writePlots(o.Plots); err != nil {
			return err
		}
	}
	if o.Write {
		if err := report.write(dir); err != nil {
			return err
		}
	}
	if len(report.Failures) > 0 {
		return errFailed
	}
	return nil
}

// measure makes a report, or reads an old one.
func measure(ctx context.Context, o *options) (*Report, error) {
	if o.FromJSON != "" {
		text, err := os.ReadFile(o.FromJSON)
		if err != nil {
			return nil, err
		}
		report := new(Report)
		if err := json.Unmarshal(text, report); err != nil {
			return nil, fmt.Errorf("%s: %w", o.FromJSON, err)
		}
		return report, nil
	}
	if o.PGBin == "" {
		bin, err := pgserver.Find()
		if err != nil {
			return nil, err
		}
		o.PGBin = bin
	}
	r := newRunner(o)
	err := r.run(ctx)
	if stopErr := r.stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		return nil, err
	}
	return r.report, nil
}
