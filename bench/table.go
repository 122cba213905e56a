package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

// writeTable writes the report for people.
func (r *Report) writeTable(w io.Writer) error {
	var out strings.Builder
	fmt.Fprintf(&out, "server    %s\n          %s\n", r.Server.Version, r.settings())
	c := &r.Client
	fmt.Fprintf(&out, "client    %s, %s/%s, %d CPUs; %d clients publish, payloads of %d bytes; %d rounds\n",
		c.GoVersion, c.OS, c.Arch, c.CPUs, c.Clients, c.PayloadBytes, c.Rounds)
	fmt.Fprintf(&out, "figures   medians over the rounds (lowest to highest); x floor is the median of the ratios within each round,\n")
	fmt.Fprintf(&out, "          x peer the ratio to the best of the others in the first figure\n")
	for _, p := range r.Phases {
		p.write(&out)
	}
	out.WriteString("\nCONTRACTS\n")
	for _, s := range r.Systems {
		name := s.Name
		if s.Version != "" {
			name += " " + s.Version
		}
		fmt.Fprintf(&out, "\n  %s\n    publish     %s\n    consume     %s\n    ack         %s\n    durability  %s\n",
			name, s.Contract.Publish, s.Contract.Consume, s.Contract.Ack, s.Contract.Durability)
		if !s.FanOut {
			fmt.Fprintf(&out, "    fan-out     none: a job is published for each group\n")
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(&out, "\nskipped: %s: %s\n", s.Name, s.Why)
	}
	for _, f := range r.Failures {
		fmt.Fprintf(&out, "\nFAILED: %s\n", f)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (p *Phase) write(out *strings.Builder) {
	fmt.Fprintf(out, "\n%s\n", strings.ToUpper(p.Title))
	for _, row := range p.Rows {
		fmt.Fprintf(out, "\n  %s\n", row.System)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, f := range row.Figures {
			name := f.Name
			if f.Unit == bench.PerSecond {
				name += ", 1/s"
			}
			value := bench.FormatValue(f.Median, f.Unit)
			spread := ""
			if len(f.Rounds) > 1 {
				spread = "(" + bench.FormatValue(f.Min, f.Unit) + " to " + bench.FormatValue(f.Max, f.Unit) + ")"
			}
			toFloor, toBest := "", ""
			if f.ToFloor != nil {
				toFloor = fmt.Sprintf("%.2f x floor", *f.ToFloor)
			}
			if f.Name == p.Principal && row.ToBest > 0 {
				toBest = fmt.Sprintf("%.2f x peer", row.ToBest)
			}
			fmt.Fprintf(w, "    %s\t%s\t%s\t%s\t%s\n", name, value, spread, toFloor, toBest)
		}
		_ = w.Flush() // a Builder takes everything
		a := row.sum()
		fmt.Fprintf(out, "    audit: %d published, %d missing, %d duplicates, %d never published\n", a.Published, a.Missing, a.Duplicates, a.Foreign)
		writeTables(out, row.Tables)
	}
}

// writeTables lists those that have anything in them, partitions added up.
func writeTables(out *strings.Builder, tables []bench.Table) {
	var names []string
	sums := make(map[string]*bench.Table)
	for _, t := range tables {
		s := sums[t.Parent]
		if s == nil {
			s = new(bench.Table)
			sums[t.Parent] = s
			names = append(names, t.Parent)
		}
		s.Live += t.Live
		s.Dead += t.Dead
		s.HeapBytes += t.HeapBytes
		s.ToastBytes += t.ToastBytes
		s.IndexBytes += t.IndexBytes
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, name := range names {
		if s := sums[name]; s.Live+s.Dead+s.HeapBytes > 0 {
			fmt.Fprintf(w, "    table %s\t%d live\t%d dead\theap %s\ttoast %s\tindexes %s\n", name, s.Live, s.Dead,
				bench.FormatValue(float64(s.HeapBytes), bench.Bytes), bench.FormatValue(float64(s.ToastBytes), bench.Bytes),
				bench.FormatValue(float64(s.IndexBytes), bench.Bytes))
		}
	}
	_ = w.Flush() // a Builder takes everything
}
