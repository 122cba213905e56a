package bench

import (
	"errors"
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// Between these lines of a Markdown file are the figures that WriteGrowth puts there.
const (
	GrowthBegin = "<!-- figures -->"
	GrowthEnd   = "<!-- end of figures -->"
)

// ErrNoGrowth means that nothing was measured of which there is a curve.
var ErrNoGrowth = errors.New("no workload was measured that begins with growth")

// WriteGrowth puts the tables of all series into a Markdown file, in place of what is between its lines GrowthBegin and
// GrowthEnd, and their plots into the folder beside it that has its name without .md. Where it returns an error, plots may
// have been written.
//
// It returns ErrNoGrowth if there are none.
func (r *Report) WriteGrowth(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	plots := strings.TrimSuffix(file, ".md")
	if plots == file {
		return fmt.Errorf("%s: not a Markdown file by its name, which has to end in .md", file)
	}
	before, rest, ok := strings.Cut(string(text), GrowthBegin)
	_, after, okEnd := strings.Cut(rest, GrowthEnd)
	if !ok || !okEnd {
		return fmt.Errorf("%s: no place for figures between %q and %q", file, GrowthBegin, GrowthEnd)
	}
	if err := r.WriteGrowthPlots(plots); err != nil {
		return err
	}
	replaced := before + GrowthBegin + "\n\n" + r.growthMarkdown(filepath.Base(plots)) + "\n" + GrowthEnd + after
	return os.WriteFile(file, []byte(replaced), 0o644)
}

// WriteGrowthPlots draws each series into a file of the folder dir, which it makes, by the name of the workload.
//
// It returns ErrNoGrowth if there are none.
func (r *Report) WriteGrowthPlots(dir string) error {
	if len(r.Growth) == 0 {
		return ErrNoGrowth
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i := range r.Growth {
		g := &r.Growth[i]
		if err := os.WriteFile(filepath.Join(dir, g.Workload+".svg"), []byte(g.plot()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// unit is what the cost is of, and by.
func (g *Growth) unit() string {
	of, by := "a message", "server CPU"
	if g.perByte() {
		of = "a byte"
	}
	if !g.hasCPU() {
		by = "time"
	}
	return by + " " + of
}

func (r *Report) growthMarkdown(plots string) string {
	var out strings.Builder
	server, _, _ := strings.Cut(r.Server.Version, ",")
	rounds := fmt.Sprintf("%d round%s", r.Config.Rounds, plural(r.Config.Rounds))
	fmt.Fprintf(&out, "Measured on %s: %s, on %d CPUs for server and clients together, each point for %v, %s.\n",
		r.Started.Format("2 January 2006"), server, r.Client.CPUs, r.Config.Duration, rounds)
	for i := range r.Growth {
		g := &r.Growth[i]
		fmt.Fprintf(&out, "\n### %s\n\n![%s by %s](%s/%s.svg)\n\n", g.Workload, g.unit(), g.Of, plots, g.Workload)
		fmt.Fprintf(&out, "| %s | messages/s | %s, x first | server CPU a message | p99 of calls | `Metrics` | maintenance |\n|--:|--:|--:|--:|--:|--:|--:|\n", g.Of, g.unit())
		for j, p := range g.Points {
			cpu := ""
			if p.ServerCPU != nil {
				cpu = format(*p.ServerCPU, seconds)
			}
			fmt.Fprintf(&out, "| %s | %s | %.2f | %s | %s | %s | %s |\n", grouped(int64(p.Size)), grouped(int64(p.Messages)), g.relative(j), cpu,
				format(p.P99, seconds), format(p.Metrics, seconds), format(p.Maintenance, seconds))
		}
	}
	return out.String()
}

// Sizes of a plot, in pixels, and of what surrounds its curve.
const (
	plotWidth  = 480
	plotHeight = 240
	plotLeft   = 44
	plotRight  = 36
	plotTop    = 36
	plotBottom = 44
)

// The background is whatever is behind a plot; texts and lines go by the reader's light or dark scheme.
const plotStyle = `<style>
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600; fill: #24292f }
.axis { stroke: #8b949e; stroke-width: 1 }
.first { stroke: #8b949e; stroke-width: 1; stroke-dasharray: 4 4 }
.curve { stroke: #2f81f7; stroke-width: 2; fill: none }
.point { fill: #2f81f7 }
@media (prefers-color-scheme: dark) {
  text { fill: #9da7b3 }
  .title { fill: #e6edf3 }
}
</style>`

// plot draws the cost over the size, which has a logarithmic scale, in units of what it is at the smallest size. The scale of costs
// begins at 0 and goes at least to 2, so that what is flat looks flat.
func (g *Growth) plot() string {
	most := 2.0
	for i := range g.Points {
		most = max(most, 1.1*g.relative(i))
	}
	first, last := math.Log(float64(g.Points[0].Size)), math.Log(float64(g.Points[len(g.Points)-1].Size))
	const bottom, right = plotHeight - plotBottom, plotWidth - plotRight
	x := func(size int) float64 {
		return plotLeft + 20 + divide(math.Log(float64(size))-first, last-first)*(right-plotLeft-20)
	}
	y := func(cost float64) float64 { return bottom - cost/most*(bottom-plotTop) }

	var s strings.Builder
	label := func(x, y float64, class, anchor, text string) {
		fmt.Fprintf(&s, `<text x="%.1f" y="%.1f" class="%s" text-anchor="%s">%s</text>`+"\n", x, y, class, anchor, html.EscapeString(text))
	}
	line := func(x1, y1, x2, y2 float64, class string) {
		fmt.Fprintf(&s, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
	}
	title := g.unit() + ", times that at the smallest size"
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n", plotWidth, plotHeight, plotWidth, plotHeight)
	fmt.Fprintf(&s, "<title>%s: %s</title>\n%s\n", html.EscapeString(g.Workload), html.EscapeString(title), plotStyle)
	label(0, 14, "title", "start", title)
	line(plotLeft, bottom, right, bottom, "axis")
	line(plotLeft, plotTop, plotLeft, bottom, "axis")
	for _, cost := range []float64{0, 1, most} {
		label(plotLeft-8, y(cost)+4, "label", "end", fmt.Sprintf("%.3g", cost))
	}
	line(plotLeft, y(1), right, y(1), "first")
	var points []string
	for i, p := range g.Points {
		points = append(points, fmt.Sprintf("%.1f,%.1f", x(p.Size), y(g.relative(i))))
	}
	fmt.Fprintf(&s, `<polyline points="%s" class="curve"/>`+"\n", strings.Join(points, " "))
	for i, p := range g.Points {
		cost := g.relative(i)
		fmt.Fprintf(&s, `<circle cx="%.1f" cy="%.1f" r="3" class="point"/>`+"\n", x(p.Size), y(cost))
		label(x(p.Size), y(cost)-8, "label", "middle", fmt.Sprintf("%.2f", cost))
		line(x(p.Size), bottom, x(p.Size), bottom+4, "axis")
		label(x(p.Size), bottom+16, "label", "middle", grouped(int64(p.Size)))
	}
	label((plotLeft+right)/2, plotHeight-8, "label", "middle", g.Of)
	s.WriteString("</svg>\n")
	return s.String()
}
