package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
)

// allSystems are in the order in which they are reported and, within a round, measured.
var allSystems = []*system{
	floorSystem,
	fastpubsubSystem,
	consumeSystem,
	skipLockedSystem,
	riverSystem,
	watermillSystem,
	pgBossSystem,
	graphileSystem,
}

func systemNames() []string {
	var names []string
	for _, s := range allSystems {
		names = append(names, s.name)
	}
	return names
}

// workloads are the names of what can be measured.
var workloads = []string{"publish", "drain", "sustained", "fanout", "pinned", "writer", "restart"}

const (
	usualBatch  = 100 // messages of a call, but in workloads about it
	slowRate    = 200 // messages a second
	fanOutBatch = 10
	crashRate   = 1000
	crashBatch  = 10
)

// phases are those of the workloads that were asked for.
func (o *options) phases() []*phase {
	var all []*phase
	for _, workload := range workloads {
		if len(o.Workloads) > 0 && !slices.Contains(o.Workloads, workload) {
			continue
		}
		add := func(p phase) {
			p.workload = workload
			p.groups = max(p.groups, 1)
			all = append(all, &p)
		}
		switch workload {
		case "publish":
			for _, batch := range []int{1, 10, 100, 1000} {
				add(phase{title: fmt.Sprintf("publish, %d a call", batch), floor: batch, batch: batch, duration: o.Duration})
			}
		case "drain":
			add(phase{title: fmt.Sprintf("drain a backlog of %d", o.Backlog), floor: usualBatch, batch: usualBatch, backlog: o.Backlog, consume: true})
		case "sustained":
			add(phase{title: "publish and consume at full speed", floor: usualBatch, batch: usualBatch, duration: o.Duration, consume: true})
			add(phase{title: fmt.Sprintf("publish and consume %d a second", slowRate), batch: 1, rate: slowRate, duration: o.Duration, consume: true})
		case "fanout":
			for _, groups := range []int{1, 10, 100} {
				add(phase{title: fmt.Sprintf("fan-out to %d", groups), floor: fanOutBatch, batch: fanOutBatch, groups: groups, duration: o.Duration, consume: true})
			}
		case "pinned":
			add(phase{title: fmt.Sprintf("a snapshot held for %v", o.Pinned), floor: usualBatch, once: true, batch: usualBatch, duration: o.Pinned, consume: true, hold: holdSnapshot})
		case "writer":
			add(phase{title: fmt.Sprintf("a writing transaction open for %v", o.Writer), floor: usualBatch, once: true, batch: usualBatch, duration: o.Writer, consume: true, hold: holdWriter})
		case "restart":
			add(phase{title: fmt.Sprintf("the server is killed, %d messages a second", crashRate), once: true, batch: crashBatch, rate: crashRate, duration: o.Restart, consume: true, crash: true})
		}
	}
	return all
}

// floorPhase is the floor of phases with calls of so many messages.
func (o *options) floorPhase(batch int) *phase {
	return &phase{workload: "floor", title: fmt.Sprintf("floor, %d a call", batch), batch: batch, groups: 1, duration: o.Duration}
}

// A runner measures everything.
type runner struct {
	*options
	report  *Report
	systems []*system
	servers map[*system]*server
	samples map[key][]*sample // one a round; nil for one that failed
}

type key struct{ phase, system string }

func newRunner(o *options) *runner {
	return &runner{
		options: o,
		report: &Report{
			Started: time.Now().UTC(),
			Client: Client{
				GoVersion: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(),
				Clients: o.Clients, Window: o.Window, PayloadBytes: payloadBytes, Rounds: o.Rounds, Seconds: o.Duration.Seconds(), Quick: o.Quick,
			},
		},
		servers: make(map[*system]*server),
		samples: make(map[key][]*sample),
	}
}

// server returns a system's server, which it starts if it does not run yet.
func (r *runner) server(ctx context.Context, sys *system) (*server, error) {
	if s := r.servers[sys]; s != nil {
		return s, nil
	}
	s, err := startServer(ctx, r.PGBin)
	if err == nil {
		r.servers[sys] = s
	}
	return s, err
}

// stop stops all servers.
func (r *runner) stop() error {
	var all error
	for _, s := range r.servers {
		all = errors.Join(all, s.pg.Stop())
	}
	return all
}

func (r *runner) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}

func (r *runner) run(ctx context.Context) error {
	for _, sys := range allSystems {
		asked := len(r.Systems) == 0 || sys.floor || slices.Contains(r.Systems, sys.name)
		if !asked {
			continue
		}
		if sys.missing != nil {
			if why := sys.missing(); why != "" {
				r.report.Skipped = append(r.report.Skipped, Skipped{sys.name, why})
				r.say("%s is skipped: %s", sys.name, why)
				continue
			}
		}
		r.systems = append(r.systems, sys)
	}
	phases := r.phases()
	err := r.rounds(ctx, phases)
	if ctx.Err() != nil && len(r.samples) > 0 {
		err = nil // what there is is better than nothing
		r.report.Failures = append(r.report.Failures, "interrupted: what is missing was not measured")
	}
	r.fill(phases)
	return err
}

func (r *runner) rounds(ctx context.Context, phases []*phase) error {
	for round := range r.Rounds {
		floors := make(map[int]bool) // measured in this round
		for _, p := range phases {
			if p.once && round > 0 {
				continue
			}
			if p.floor > 0 && !floors[p.floor] {
				floors[p.floor] = true
				if err := r.measure(ctx, round, floorSystem, r.floorPhase(p.floor)); err != nil {
					return err
				}
			}
			for _, sys := range r.systems {
				if sys.floor || sys.again && !p.consume {
					continue
				}
				if err := r.measure(ctx, round, sys, p); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// measure tries a phase and keeps its sample. A system's failure is reported and does not end the run.
func (r *runner) measure(ctx context.Context, round int, sys *system, p *phase) error {
	r.say("round %d of %d: %s: %s", round+1, r.Rounds, p.title, sys.name)
	s, err := r.try(ctx, sys, p)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		text := fmt.Sprintf("round %d: %s: %s: %v", round+1, p.title, sys.name, err)
		r.report.Failures = append(r.report.Failures, text)
		r.say("FAILED: %s", text)
		s = nil
	}
	k := key{p.title, sys.name}
	r.samples[k] = append(r.samples[k], s)
	return nil
}
