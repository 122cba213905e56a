package bench

import (
	"fmt"
	"slices"
	"time"
)

// A Report is what Run found out.
type Report struct {
	Started   time.Time  `json:"started"`
	Server    Server     `json:"server"`
	Client    Client     `json:"client"`
	Config    Config     `json:"config"`
	Seconds   float64    `json:"duration_seconds"` // Config.Duration
	Workloads []Workload `json:"workloads"`
	Floors    []Phase    `json:"floors"`
	Growth    []Growth   `json:"growth,omitempty"`
	Notes     []string   `json:"notes,omitempty"` // what the reader of the figures should know
}

// A Workload is one of Workloads.
type Workload struct {
	Name   string  `json:"name"`
	Phases []Phase `json:"phases"`
}

// A Phase is the figures of one measured phase.
type Phase struct {
	Title   string   `json:"title"`
	Floor   string   `json:"floor,omitempty"` // the title of the floor that its figures are compared with
	Figures []Figure `json:"figures"`
	Tables  []Table  `json:"tables"` // after the last round
}

// A Metric is one figure of one round.
type Metric struct {
	Name  string
	Unit  string
	Value float64
}

// Units of metrics.
const (
	perSecond = "1/s"
	seconds   = "s"
	bytesUnit = "bytes"
	count     = "count"
	ratio     = "ratio"
)

// Names of metrics that are referred to.
const (
	messagesPerSecond = "messages"
	cleanWindows      = "windows of polls that wrote nothing"
	nacks             = "messages nacked"
	untilRedelivered  = "until all were redelivered"
	untilSwept        = "until all were swept"
	estimates         = "answers that were estimates"
)

// A Figure is a metric over all rounds.
type Figure struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Rounds []float64 `json:"rounds"`
	// Floor is the median of the same metric of the floor, and ToFloor the median of the ratios within each round; there
	// is none to a floor of 0.
	Floor   *float64 `json:"floor,omitempty"`
	ToFloor *float64 `json:"to_floor,omitempty"`
}

// note adds to the notes, once.
func (r *Report) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// fill makes figures of samples, which are by the title of their phase.
func (r *Report) fill(plan []planned, samples map[string][]sample) {
	r.fillGrowth(plan, samples)
	for _, w := range plan {
		workload := Workload{Name: w.workload}
		for _, p := range w.phases {
			mine := samples[p.title()]
			out := Phase{Title: p.title(), Tables: mine[len(mine)-1].tables}
			var floor []sample
			if p.floor != nil {
				out.Floor = p.floor.title()
				floor = samples[out.Floor]
				r.addFloor(out.Floor, floor)
			}
			out.Figures = figures(mine, floor)
			if p.versus != nil {
				name := "messages to those of: " + p.versus.title()
				out.Figures = append(out.Figures, newFigure(name, ratio, ratios(messagesPerSecond, messagesPerSecond, mine, samples[p.versus.title()])))
			}
			workload.Phases = append(workload.Phases, out)
		}
		if slices.Contains(HTTPWorkloads, w.workload) {
			r.note("over HTTP: the server, and the floor's, which is net/http alone, are processes of their own on this machine, "+
				"with %d connections to the database; each client is one connection that is kept", httpPoolSize)
		}
		r.Workloads = append(r.Workloads, workload)
	}
}

func (r *Report) addFloor(title string, samples []sample) {
	if !slices.ContainsFunc(r.Floors, func(p Phase) bool { return p.Title == title }) {
		r.Floors = append(r.Floors, Phase{Title: title, Figures: figures(samples, nil), Tables: samples[len(samples)-1].tables})
	}
}

func figures(samples, floor []sample) []Figure {
	var all []Figure
	for _, m := range samples[0].metrics {
		f := newFigure(m.Name, m.Unit, values(m.Name, samples))
		floorName := m.Name
		if m.Name == "published" {
			floorName = messagesPerSecond
		}
		if base := values(floorName, floor); len(base) > 0 {
			f.Floor = ptr(median(base))
			if !slices.Contains(base, 0) {
				f.ToFloor = ptr(median(ratios(m.Name, floorName, samples, floor)))
			}
		}
		all = append(all, f)
	}
	return all
}

func newFigure(name, unit string, values []float64) Figure {
	return Figure{Name: name, Unit: unit, Median: median(values), Min: slices.Min(values), Max: slices.Max(values), Rounds: values}
}

func values(name string, samples []sample) []float64 {
	var all []float64
	for _, s := range samples {
		if v, ok := s.value(name); ok {
			all = append(all, v)
		}
	}
	return all
}

// ratios divides a metric of each round by another of the same round.
func ratios(name, otherName string, samples, others []sample) []float64 {
	a, b := values(name, samples), values(otherName, others)
	all := make([]float64, min(len(a), len(b)))
	for i := range all {
		all[i] = divide(a[i], b[i])
	}
	return all
}

func ptr(f float64) *float64 { return &f }
