package main

import (
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strings"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

// Sizes of plots, in pixels. The background is whatever is behind them; texts and lines go by the reader's light or dark
// scheme.
const (
	plotWidth  = 880
	labelWidth = 150
	valueWidth = 130
	rowHeight  = 18
	lineHeight = 260
)

const svgStyle = `<style>
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600; fill: #24292f }
.axis { stroke: #8b949e; stroke-width: 1 }
.spread { stroke: #57606a; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #9da7b3 }
  .title { fill: #e6edf3 }
  .spread { stroke: #c9d1d9 }
}
</style>`

// colours are of allSystems, readable on white and on black.
var colours = []string{"#8b949e", "#2f81f7", "#6cb6ff", "#bf8700", "#2da44e", "#a371f7", "#db61a2", "#e5534b"}

func colour(system string) string {
	for i, name := range systemNames() {
		if name == system {
			return colours[i%len(colours)]
		}
	}
	return colours[0]
}

type svg struct{ strings.Builder }

func (s *svg) open(height int, title string) {
	fmt.Fprintf(s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n", plotWidth, height, plotWidth, height)
	fmt.Fprintf(s, "<title>%s</title>\n%s\n", html.EscapeString(title), svgStyle)
}

func (s *svg) text(x, y float64, class, anchor, text string) {
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>`+"\n", x, y, class, anchor, html.EscapeString(text))
}

func (s *svg) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(s, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
}

func (s *svg) close() string {
	s.WriteString("</svg>\n")
	return s.String()
}

// bars draws the principal figure of phases: a bar is the median, the line in it goes from lowest to highest.
func bars(title string, phases []Phase) string {
	height := 10
	for _, p := range phases {
		height += 34 + rowHeight*len(p.Rows)
	}
	var s svg
	s.open(height, title)
	y := 10.0
	for _, p := range phases {
		unit, most := "", 0.0
		for i := range p.Rows {
			if f := p.Rows[i].figure(p.Principal); f != nil {
				unit = f.Unit
				most = max(most, f.Max)
			}
		}
		heading := p.Title + ": " + p.Principal
		if unit == bench.PerSecond {
			heading += " a second"
		}
		if p.Less {
			heading += " (shorter is better)"
		}
		s.text(0, y+14, "title", "start", heading)
		y += 22
		scale := 0.0
		if most > 0 {
			scale = (plotWidth - labelWidth - valueWidth) / most
		}
		for i := range p.Rows {
			row := &p.Rows[i]
			mid := y + rowHeight/2
			s.text(labelWidth-8, mid+4, "label", "end", row.System)
			if f := row.figure(p.Principal); f != nil {
				fmt.Fprintf(&s, `<rect x="%d" y="%.1f" width="%.1f" height="%d" rx="2" fill="%s"/>`+"\n",
					labelWidth, y+3, max(1, f.Median*scale), rowHeight-6, colour(row.System))
				if len(f.Rounds) > 1 {
					s.line(labelWidth+f.Min*scale, mid, labelWidth+f.Max*scale, mid, "spread")
				}
				s.text(labelWidth+max(f.Median, f.Max)*scale+6, mid+4, "value", "start", bench.FormatValue(f.Median, f.Unit))
			}
			y += rowHeight
		}
		y += 12
	}
	return s.close()
}

// lines draws messages a second over time, of all systems of a phase.
func lines(p Phase) string {
	most, end := 0.0, 0.0
	for _, row := range p.Rows {
		for i, v := range row.Series {
			most = max(most, v)
			end = max(end, float64(i+1)*row.StepSecs)
		}
	}
	const left, top, right = 70.0, 30.0, 20.0
	legend := rowHeight * ((len(p.Rows) + 3) / 4)
	var s svg
	s.open(int(top)+lineHeight+30+legend, p.Title)
	s.text(0, 14, "title", "start", p.Title+": messages consumed a second, over time")
	if most == 0 || end == 0 {
		return s.close()
	}
	bottom := top + lineHeight
	at := func(t, v float64) (x, y float64) {
		return left + t/end*(plotWidth-left-right), bottom - v/most*lineHeight
	}
	s.line(left, bottom, plotWidth-right, bottom, "axis")
	for i := range 5 {
		v := most * float64(i) / 4
		_, y := at(0, v)
		s.text(left-8, y+4, "label", "end", bench.FormatValue(v, bench.PerSecond))
		s.line(left-4, y, left, y, "axis")
		t := end * float64(i) / 4
		x, _ := at(t, 0)
		s.text(x, bottom+16, "label", "middle", fmt.Sprintf("%.3g s", t))
	}
	for _, row := range p.Rows {
		var points []string
		for i, v := range row.Series {
			x, y := at((float64(i)+0.5)*row.StepSecs, v)
			points = append(points, fmt.Sprintf("%.1f,%.1f", x, y))
		}
		fmt.Fprintf(&s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour(row.System))
	}
	for i, row := range p.Rows {
		x := left + float64(i%4)*(plotWidth-left)/4
		y := bottom + 30 + float64(i/4*rowHeight)
		fmt.Fprintf(&s, `<rect x="%.1f" y="%.1f" width="12" height="10" rx="2" fill="%s"/>`+"\n", x, y, colour(row.System))
		s.text(x+18, y+9, "label", "start", row.System)
	}
	return s.close()
}

// plots returns all plots by the names of their files.
func (r *Report) plots() map[string]string {
	all := make(map[string]string)
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
		all[workload+".svg"] = bars(workload, phases)
		if isTimed(workload) {
			all[workload+"-time.svg"] = lines(phases[0])
		}
	}
	return all
}

// isTimed says whether what happens over time is what a workload is about.
func isTimed(workload string) bool {
	return workload == "pinned" || workload == "writer" || workload == "restart"
}

func (r *Report) writePlots(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range r.plots() {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
