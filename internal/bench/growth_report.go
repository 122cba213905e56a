package bench

import (
	"fmt"
	"slices"
)

// A Growth is what a message costs while something grows.
type Growth struct {
	Workload string        `json:"workload"`
	Of       string        `json:"of"`
	Points   []GrowthPoint `json:"points"`
	// Verdict is "flat", "grows" or "falls", by the cost at the largest size to that at the smallest; Ratio is that. The cost is server
	// CPU, or time where CPU cannot be looked at. Of payloads it is that of a byte.
	Verdict string  `json:"verdict"`
	Ratio   float64 `json:"ratio"`
}

// A GrowthPoint is one size.
type GrowthPoint struct {
	Size      int      `json:"size"`
	Messages  float64  `json:"messages_per_second"`
	ServerCPU *float64 `json:"server_cpu_seconds_a_message,omitempty"`
	P99       float64  `json:"call_p99_seconds"`
	// What is not done for each message, in seconds.
	Metrics     float64 `json:"metrics_seconds"`
	Maintenance float64 `json:"maintenance_seconds"`
}

// flatUpTo is how much more the largest size may cost than the smallest to be called flat.
const flatUpTo = 1.5

// fillGrowth makes a series of the phases of each workload that is one.
func (r *Report) fillGrowth(plan []planned, samples map[string][]sample) {
	for _, w := range plan {
		g := Growth{Workload: w.workload}
		for _, planned := range w.phases {
			p, ok := planned.phase.(*growthPhase)
			if !ok {
				continue
			}
			mine := samples[p.title()]
			point := GrowthPoint{Size: p.size, Messages: median(values(messagesPerSecond, mine)), P99: median(values("call p99", mine)),
				Metrics: median(values(onceMetrics, mine)), Maintenance: median(values(onceMaintenance, mine))}
			if cpu := values("server CPU a message", mine); len(cpu) > 0 {
				point.ServerCPU = ptr(median(cpu))
			}
			g.Of = p.of
			g.Points = append(g.Points, point)
		}
		if len(g.Points) == 0 {
			continue
		}
		g.judge()
		r.Growth = append(r.Growth, g)
	}
}

func (g *Growth) judge() {
	g.Ratio = g.relative(len(g.Points) - 1)
	switch {
	case g.Ratio > flatUpTo:
		g.Verdict = "grows"
	case g.Ratio < 1/flatUpTo:
		g.Verdict = "falls"
	default:
		g.Verdict = "flat"
	}
}

// relative is what a message costs at a point, or a byte of it, where 1 is what it costs at the first.
func (g *Growth) relative(i int) float64 {
	first, p := g.Points[0], g.Points[i]
	cost := divide(first.Messages, p.Messages)
	if g.hasCPU() {
		cost = divide(*p.ServerCPU, *first.ServerCPU)
	}
	if g.perByte() {
		cost *= divide(float64(first.Size), float64(p.Size))
	}
	return cost
}

// hasCPU says whether the cost is server CPU.
func (g *Growth) hasCPU() bool {
	return !slices.ContainsFunc(g.Points, func(p GrowthPoint) bool { return p.ServerCPU == nil }) && *g.Points[0].ServerCPU > 0
}

func (g *Growth) perByte() bool { return g.Workload == "growth-payload" }

// writeGrowth writes a table for each series.
func (r *Report) writeGrowth(t *text) {
	if len(r.Growth) == 0 {
		return
	}
	t.line("")
	t.line("GROWTH")
	for _, g := range r.Growth {
		t.line("")
		t.line("  %-40s %12s %8s %12s %8s %12s %8s", g.Of, "messages/s", "x first", "server CPU", "x first", "p99 of calls", "x first")
		for _, p := range g.Points {
			first := g.Points[0]
			cpu, cpuRatio := "", ""
			if p.ServerCPU != nil && first.ServerCPU != nil {
				cpu, cpuRatio = format(*p.ServerCPU, seconds), fmt.Sprintf("%.2f", divide(*p.ServerCPU, *first.ServerCPU))
			}
			t.line("    %-38s %12s %8.2f %12s %8s %12s %8.2f", grouped(int64(p.Size)), grouped(int64(p.Messages)), divide(p.Messages, first.Messages),
				cpu, cpuRatio, format(p.P99, seconds), divide(p.P99, first.P99))
		}
		unit := "a message"
		if g.perByte() {
			unit = "a byte"
		}
		t.line("    %s: %s costs %.2f times as much at the largest size as at the smallest", g.Verdict, unit, g.Ratio)
	}
}
