package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

// A Report is what was found out.
type Report struct {
	Started  time.Time     `json:"started"`
	Server   bench.Server  `json:"server"` // one of them: all have the same settings
	Client   Client        `json:"client"`
	Systems  []SystemFacts `json:"systems"`
	Skipped  []Skipped     `json:"skipped,omitempty"`
	Phases   []Phase       `json:"phases"`
	Failures []string      `json:"failures,omitempty"`
}

// A Client is who measures.
type Client struct {
	GoVersion    string  `json:"go_version"`
	OS           string  `json:"os"`
	Arch         string  `json:"arch"`
	CPUs         int     `json:"cpus"`
	Clients      int     `json:"clients"`
	Window       int     `json:"window"`
	PayloadBytes int     `json:"payload_bytes"`
	Rounds       int     `json:"rounds"`
	Seconds      float64 `json:"duration_seconds"`
	Quick        bool    `json:"quick,omitempty"`
}

// SystemFacts say what the figures of a system are of.
type SystemFacts struct {
	Name     string   `json:"name"`
	Version  string   `json:"version,omitempty"`
	FanOut   bool     `json:"fan_out"`
	Contract contract `json:"contract"`
}

// Skipped is a system that could not be measured on this machine.
type Skipped struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// A Phase has the figures of all systems.
type Phase struct {
	Workload  string `json:"workload"`
	Title     string `json:"title"`
	Principal string `json:"principal"` // the figure by which systems are compared
	Less      bool   `json:"less"`      // less of it is better
	Rows      []Row  `json:"rows"`
}

// A Row is a system's.
type Row struct {
	System   string         `json:"system"`
	Figures  []bench.Figure `json:"figures"`
	ToBest   float64        `json:"to_best_peer,omitempty"` // the principal figure to the best peer's
	Audits   []Audit        `json:"audits"`                 // of each round
	Tables   []bench.Table  `json:"tables"`                 // after the last round
	Series   []float64      `json:"series,omitempty"`       // messages a second in each step, in the last round
	StepSecs float64        `json:"step_seconds,omitempty"`
}

func (r *Row) figure(name string) *bench.Figure {
	for i := range r.Figures {
		if r.Figures[i].Name == name {
			return &r.Figures[i]
		}
	}
	return nil
}

// fill makes figures of the samples.
func (r *runner) fill(phases []*phase) {
	for _, sys := range r.systems {
		r.report.Systems = append(r.report.Systems, SystemFacts{sys.name, sys.version, sys.fanOut, sys.contract})
	}
	for _, p := range phases {
		out := Phase{Workload: p.workload, Title: p.title}
		out.Principal, out.Less = p.principal()
		var floor []*sample
		if p.floor > 0 {
			fp := r.floorPhase(p.floor)
			floor = r.samples[key{fp.title, floorSystem.name}]
			if p.workload == "publish" {
				out.addRow(floorSystem, floor, nil)
			}
		}
		for _, sys := range r.systems {
			out.addRow(sys, r.samples[key{p.title, sys.name}], floor)
		}
		if len(out.Rows) > 0 {
			out.compare(r.systems)
			r.report.Phases = append(r.report.Phases, out)
		}
	}
}

// addRow adds a system's row, unless every round failed.
func (p *Phase) addRow(sys *system, samples, floor []*sample) {
	row := Row{System: sys.name}
	var last *sample
	for _, s := range samples {
		if s != nil {
			row.Audits = append(row.Audits, s.audit)
			last = s
		}
	}
	if last == nil {
		return
	}
	for _, m := range last.metrics {
		f := bench.NewFigure(m.Name, m.Unit, values(m.Name, samples))
		if base := values(m.Name, floor); len(base) > 0 {
			median := bench.Median(base)
			f.Floor = &median
			if ratios := ratios(m.Name, samples, floor); len(ratios) > 0 {
				toFloor := bench.Median(ratios)
				f.ToFloor = &toFloor
			}
		}
		row.Figures = append(row.Figures, f)
	}
	row.Tables = last.tables
	row.StepSecs = last.step.Seconds()
	for _, n := range last.series {
		row.Series = append(row.Series, float64(n)/row.StepSecs)
	}
	p.Rows = append(p.Rows, row)
}

func values(name string, samples []*sample) []float64 {
	var all []float64
	for _, s := range samples {
		if s == nil {
			continue
		}
		if v, ok := s.value(name); ok {
			all = append(all, v)
		}
	}
	return all
}

// ratios divides a metric of each round by the floor's of the same round. What is 0 of the floor has no ratio.
func ratios(name string, samples, floor []*sample) []float64 {
	var all []float64
	for i := range min(len(samples), len(floor)) {
		if samples[i] == nil || floor[i] == nil {
			continue
		}
		a, ok := samples[i].value(name)
		b, okFloor := floor[i].value(name)
		if ok && okFloor && b != 0 {
			all = append(all, a/b)
		}
	}
	return all
}

// compare finds the best peer and compares all with it.
func (p *Phase) compare(systems []*system) {
	best := 0.0
	for i := range p.Rows {
		peer := slices.ContainsFunc(systems, func(s *system) bool { return s.peer && s.name == p.Rows[i].System })
		if f := p.Rows[i].figure(p.Principal); peer && f != nil {
			if best == 0 || p.Less && f.Median < best || !p.Less && f.Median > best {
				best = f.Median
			}
		}
	}
	for i := range p.Rows {
		if f := p.Rows[i].figure(p.Principal); f != nil && best > 0 {
			p.Rows[i].ToBest = f.Median / best
		}
	}
}

// sum adds audits up.
func (r *Row) sum() Audit {
	var all Audit
	for _, a := range r.Audits {
		all.Published += a.Published
		all.Missing += a.Missing
		all.Duplicates += a.Duplicates
		all.Foreign += a.Foreign
	}
	return all
}

func (r *Report) writeJSON(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// settings are the server's on one line.
func (r *Report) settings() string {
	var all []string
	for _, s := range r.Server.Settings {
		all = append(all, s.Name+"="+s.Value)
	}
	return strings.Join(all, " ")
}
