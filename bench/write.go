package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

// Between these lines of README.md are the results that --write puts there.
const (
	resultsBegin = "<!-- results: written by bench/run --write -->"
	resultsEnd   = "<!-- end of results -->"
)

// moduleDir finds this module's folder, which the program is to run in.
func moduleDir() (string, error) {
	if _, err := os.Stat("node/driver.js"); err != nil {
		return "", errors.New("not in the folder of the benchmark's module: start it with bench/run")
	}
	return filepath.Abs(".")
}

// write puts the results into the module.
func (r *Report) write(dir string) error {
	results := filepath.Join(dir, "results")
	if err := r.writePlots(results); err != nil {
		return err
	}
	if err := r.writeJSON(filepath.Join(results, "latest.json")); err != nil {
		return err
	}
	readme := filepath.Join(dir, "README.md")
	text, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	replaced, err := replaceResults(string(text), r.markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	return os.WriteFile(readme, []byte(replaced), 0o644)
}

func replaceResults(readme, results string) (string, error) {
	before, rest, ok := strings.Cut(readme, resultsBegin)
	_, after, okEnd := strings.Cut(rest, resultsEnd)
	if !ok || !okEnd {
		return "", fmt.Errorf("no place for results between %q and %q", resultsBegin, resultsEnd)
	}
	return before + resultsBegin + "\n\n" + results + "\n" + resultsEnd + after, nil
}

// workloadHeadings introduce the tables.
var workloadHeadings = map[string]string{
	"publish":   "Publish",
	"drain":     "Drain a backlog",
	"sustained": "Publish and consume at the same time",
	"fanout":    "Fan-out",
	"pinned":    "A snapshot that stays open",
	"writer":    "A writing transaction that stays open",
	"restart":   "The server is killed in the middle",
}

// markdown is the report as README.md has it.
func (r *Report) markdown() string {
	var out strings.Builder
	c := &r.Client
	fmt.Fprintf(&out, "Measured on %s: %s; %d CPUs for everything, %s/%s, %s; %d clients publish payloads of %d bytes; %d rounds.\n",
		r.Started.Format("2 January 2006"), firstWords(r.Server.Version), c.CPUs, c.OS, c.Arch, c.GoVersion, c.Clients, c.PayloadBytes, c.Rounds)
	fmt.Fprintf(&out, "Settings of every server: `%s`.\n", r.settings())
	if c.Quick {
		out.WriteString("\n**A quick run: it shows that everything works, and its figures are worth little.**\n")
	}
	for _, workload := range workloads {
		var phases []Phase
		for _, p := range r.Phases {
			if p.Workload == workload {
				phases = append(phases, p)
			}
		}
		if len(phases) == 0 {
			continue
		}
		fmt.Fprintf(&out, "\n### %s\n\n![%s](results/%s.svg)\n", workloadHeadings[workload], workloadHeadings[workload], workload)
		if isTimed(workload) {
			fmt.Fprintf(&out, "\n![Over time](results/%s-time.svg)\n", workload)
		}
		for _, p := range phases {
			out.WriteString(p.markdown())
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(&out, "\nNot measured: %s, because %s.\n", s.Name, s.Why)
	}
	for _, f := range r.Failures {
		fmt.Fprintf(&out, "\nFailed: %s\n", f)
	}
	return out.String()
}

// firstWords is "PostgreSQL 15.13" of a long version.
func firstWords(version string) string {
	words := strings.Fields(version)
	return strings.Join(words[:min(2, len(words))], " ")
}

// A column of a table of figures; the first of names that a row has counts.
type column struct {
	heading string
	names   []string
}

var columns = []column{
	{"p50", []string{"latency p50", "call p50"}},
	{"p99", []string{"latency p99", "call p99"}},
	{"WAL", []string{"WAL a message"}},
	{"server CPU", []string{"server CPU a message"}},
	{"client CPU", []string{"client CPU a message"}},
	{"dead tuples", []string{"dead tuples a message"}},
	{"on disk", []string{"size a message"}},
	{"4th quarter to 1st", []string{"4th quarter to 1st"}},
	{"longest silence", []string{"longest time without a message"}},
}

func (r *Row) first(names []string) *bench.Figure {
	for _, name := range names {
		if f := r.figure(name); f != nil {
			return f
		}
	}
	return nil
}

func (p *Phase) markdown() string {
	var used []column
	for _, c := range columns {
		for i := range p.Rows {
			if f := p.Rows[i].first(c.names); f != nil && f.Name != p.Principal {
				used = append(used, c)
				break
			}
		}
	}
	principal := p.Principal
	for i := range p.Rows {
		if f := p.Rows[i].figure(p.Principal); f != nil && f.Unit == bench.PerSecond {
			principal += " a second"
			break
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "\n**%s%s**\n\n| | %s | x floor | x best peer |", strings.ToUpper(p.Title[:1]), p.Title[1:], principal)
	for _, c := range used {
		fmt.Fprintf(&out, " %s |", c.heading)
	}
	out.WriteString(" missing | duplicates |\n|---|" + strings.Repeat("--:|", 5+len(used)) + "\n")
	for i := range p.Rows {
		row := &p.Rows[i]
		value, toFloor, toBest := "", "", ""
		if f := row.figure(p.Principal); f != nil {
			value = bench.FormatValue(f.Median, f.Unit)
			if len(f.Rounds) > 1 {
				value += " (" + bench.FormatValue(f.Min, f.Unit) + " to " + bench.FormatValue(f.Max, f.Unit) + ")"
			}
			if f.ToFloor != nil {
				toFloor = fmt.Sprintf("%.2f", *f.ToFloor)
			}
			if row.ToBest > 0 {
				toBest = fmt.Sprintf("%.2f", row.ToBest)
			}
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s |", row.System, value, toFloor, toBest)
		for _, c := range used {
			value := ""
			if f := row.first(c.names); f != nil {
				value = bench.FormatValue(f.Median, f.Unit)
			}
			fmt.Fprintf(&out, " %s |", value)
		}
		a := row.sum()
		fmt.Fprintf(&out, " %d | %d |\n", a.Missing, a.Duplicates)
	}
	return out.String()
}
