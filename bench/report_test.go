package main

import (
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

// samplesOf has a sample with this rate in each round; a rate of 0 is a round that failed.
func samplesOf(rates ...float64) []*sample {
	var all []*sample
	for _, rate := range rates {
		if rate == 0 {
			all = append(all, nil)
			continue
		}
		s := &sample{series: []int64{1, 2}, step: time.Second, audit: Audit{Published: 10, Duplicates: 1}}
		s.add(rateMetric, bench.PerSecond, rate)
		s.add("WAL a message", bench.Bytes, 100)
		all = append(all, s)
	}
	return all
}

func testReport() *Report {
	o := &options{Clients: 8, Window: 100, Rounds: 3, Duration: time.Second, Workloads: []string{"pinned"}, Pinned: time.Minute}
	r := newRunner(o)
	r.report.Server.Version = "PostgreSQL 15.1 on <something> & more"
	r.systems = []*system{floorSystem, fastpubsubSystem, skipLockedSystem, riverSystem}
	phases := o.phases()
	title := phases[0].title
	r.samples[key{"floor, 100 a call", "floor"}] = samplesOf(1000, 2000, 500)
	r.samples[key{title, "fastpubsub"}] = samplesOf(800, 900, 1000)
	r.samples[key{title, "skip-locked"}] = samplesOf(300, 0, 500)
	r.samples[key{title, "river"}] = samplesOf(0, 0, 0)
	r.fill(phases)
	return r.report
}

func TestFill(t *testing.T) {
	t.Parallel()
	r := testReport()
	if len(r.Phases) != 1 || len(r.Phases[0].Rows) != 2 {
		t.Fatalf("phases are %+v", r.Phases)
	}
	ours, peer := r.Phases[0].Rows[0], r.Phases[0].Rows[1]
	if ours.System != "fastpubsub" || peer.System != "skip-locked" {
		t.Fatalf("rows are of %s and %s", ours.System, peer.System)
	}
	f := ours.figure(rateMetric)
	if f.Median != 900 || f.Min != 800 || f.Max != 1000 || *f.Floor != 1000 || *f.ToFloor != 0.8 {
		t.Errorf("figure is %+v, floor %v, to floor %v", f, *f.Floor, *f.ToFloor)
	}
	// Of the round that failed there is no ratio: 0.3 and 1 are left.
	if f := peer.figure(rateMetric); f.Median != 400 || math.Abs(*f.ToFloor-0.65) > 1e-9 {
		t.Errorf("the peer's figure is %+v, to floor %v", f, *f.ToFloor)
	}
	if ours.ToBest != 2.25 || peer.ToBest != 1 {
		t.Errorf("to the best peer: %v and %v", ours.ToBest, peer.ToBest)
	}
	if a := peer.sum(); a != (Audit{Published: 20, Duplicates: 2}) {
		t.Errorf("audits add up to %+v", a)
	}
}

func TestCompareLess(t *testing.T) {
	t.Parallel()
	row := func(system string, v float64) Row {
		return Row{System: system, Figures: []bench.Figure{bench.NewFigure(latencyMetric, bench.Seconds, []float64{v})}}
	}
	p := Phase{Principal: latencyMetric, Less: true, Rows: []Row{row("fastpubsub", 0.002), row("river", 0.004), row("skip-locked", 0.008)}}
	p.compare(allSystems)
	if p.Rows[0].ToBest != 0.5 || p.Rows[1].ToBest != 1 || p.Rows[2].ToBest != 2 {
		t.Errorf("to the best peer: %v, %v, %v", p.Rows[0].ToBest, p.Rows[1].ToBest, p.Rows[2].ToBest)
	}
}

func TestPlots(t *testing.T) {
	t.Parallel()
	all := testReport().plots()
	if len(all) != 2 || all["pinned.svg"] == "" || all["pinned-time.svg"] == "" {
		t.Fatalf("plots are %v", all)
	}
	all["none"] = lines(Phase{Title: "<&>", Rows: []Row{{System: "river"}}})
	all["empty"] = bars("", []Phase{{Title: "a", Rows: []Row{{System: "river"}}}})
	for name, text := range all {
		shapes := 0
		for dec := xml.NewDecoder(strings.NewReader(text)); ; {
			token, err := dec.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, text)
			}
			if e, ok := token.(xml.StartElement); ok && (e.Name.Local == "rect" || e.Name.Local == "polyline") {
				shapes++
			}
		}
		if want := map[string]int{"pinned.svg": 2, "pinned-time.svg": 4}[name]; shapes != want {
			t.Errorf("%s has %d shapes, want %d", name, shapes, want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	r := testReport()
	text := r.markdown()
	for _, want := range []string{
		"PostgreSQL 15.1;", "### A snapshot that stays open", "| fastpubsub | 900 (800 to 1,000) | 0.80 | 2.25 | 100.0 B | 0 | 3 |",
		"![Over time](results/pinned-time.svg)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	var table strings.Builder
	if err := r.writeTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.80 x floor", "2.25 x peer", "20 published, 0 missing, 2 duplicates"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
}

func TestReplaceResults(t *testing.T) {
	t.Parallel()
	const place = "a\n" + resultsBegin + "\nold\n" + resultsEnd + "\nb\n"
	once, err := replaceResults(place, "new\n")
	if want := "a\n" + resultsBegin + "\n\nnew\n\n" + resultsEnd + "\nb\n"; once != want || err != nil {
		t.Errorf("README is %q, %v", once, err)
	}
	if again, err := replaceResults(once, "new\n"); again != once || err != nil {
		t.Errorf("a second time it is %q, %v", again, err)
	}
	for _, bad := range []string{"", resultsBegin, resultsEnd, resultsEnd + resultsBegin} {
		if _, err := replaceResults(bad, "new"); err == nil {
			t.Errorf("%q has a place for results", bad)
		}
	}
}
