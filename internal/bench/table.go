package bench

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	var t text
	r.head(&t)
	seen := make(map[string]bool) // workloads share phases
	for _, workload := range r.Workloads {
		t.line("")
		t.line("%s", strings.ToUpper(workload.Name))
		for _, p := range workload.Phases {
			if seen[p.Title] {
				t.line("")
				t.line("  %s: see above", p.Title)
				continue
			}
			seen[p.Title] = true
			p.write(&t)
		}
	}
	t.line("")
	t.line("FLOORS")
	for _, p := range r.Floors {
		p.write(&t)
	}
	r.writeGrowth(&t)
	if len(r.Notes) > 0 {
		t.line("")
	}
	for _, note := range r.Notes {
		t.line("note: %s", note)
	}
	_, err := io.WriteString(w, t.String())
	return err
}

type text struct{ strings.Builder }

func (t *text) line(format string, args ...any) {
	t.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
}

func (r *Report) head(t *text) {
	c := &r.Config
	t.line("server       %s", r.Server.Version)
	var settings []string
	for _, s := range r.Server.Settings {
		settings = append(settings, s.Name+"="+s.Value)
	}
	for ; len(settings) > 5; settings = settings[5:] {
		t.line("             %s", strings.Join(settings[:5], " "))
	}
	t.line("             %s", strings.Join(settings, " "))
	t.line("compression  %s", r.compression())
	host := "another host, or one that cannot be looked at"
	if r.Server.SameHost {
		host = "the same host"
	}
	t.line("client       %s, %d CPUs, GOMAXPROCS %d, pgx mode %s, pool of %d; the server is on %s",
		r.Client.GoVersion, r.Client.CPUs, r.Client.GOMAXPROCS, r.Client.QueryMode, r.Client.PoolSize, host)
	t.line("work         %d publishers, %d consumers, batches of %d, payloads of %d bytes; %d rounds; %v a timed phase",
		c.Publishers, c.Consumers, c.Batch, c.PayloadBytes, c.Rounds, c.Duration)
	var held []string
	if c.HoldSnapshot {
		held = append(held, "a snapshot")
	}
	if c.HoldWriter {
		held = append(held, "a writing transaction")
	}
	if len(held) > 0 {
		t.line("held open    %s", strings.Join(held, " and "))
	}
	t.line("figures      medians over the rounds, lowest and highest; x floor is the median of the ratios within each round;")
	t.line("             a message is one published in publish phases, an empty poll in poll, one examined behind a filter,")
	t.line("             a call in metrics, one leased in expiry, else one consumed and acked")
}

// compression lists what the payload columns use, as their tables say.
func (r *Report) compression() string {
	var all []string
	seen := make(map[string]bool)
	add := func(phases []Phase) {
		for _, p := range phases {
			for _, table := range p.Tables {
				if s := table.Parent + " " + table.Compression; table.Compression != "" && !seen[s] {
					seen[s] = true
					all = append(all, s)
				}
			}
		}
	}
	for _, w := range r.Workloads {
		add(w.Phases)
	}
	add(r.Floors)
	return strings.Join(all, ", ")
}

func (p *Phase) write(t *text) {
	t.line("")
	floor, toFloor := "", ""
	if p.Floor != "" {
		floor, toFloor = "floor", "x floor"
	}
	t.line("  %-40s %12s %12s %12s %12s %8s", p.Title, "median", "lowest", "highest", floor, toFloor)
	for _, f := range p.Figures {
		floor, toFloor := "", ""
		if f.Floor != nil {
			floor = format(*f.Floor, f.Unit)
		}
		if f.ToFloor != nil {
			toFloor = strconv.FormatFloat(*f.ToFloor, 'f', 2, 64)
		}
		name := f.Name
		if f.Unit == perSecond {
			name += ", 1/s"
		}
		t.line("    %-38s %12s %12s %12s %12s %8s", name, format(f.Median, f.Unit), format(f.Min, f.Unit), format(f.Max, f.Unit), floor, toFloor)
	}
	tableSizes(t, p.Tables)
}

// tableSizes adds the partitions of a table up.
func tableSizes(t *text, tables []Table) {
	var parents []string
	sum := make(map[string]*Table)
	for _, table := range tables {
		s := sum[table.Parent]
		if s == nil {
			s = new(Table)
			sum[table.Parent] = s
			parents = append(parents, table.Parent)
		}
		s.Live += table.Live
		s.Dead += table.Dead
		s.HeapBytes += table.HeapBytes
		s.ToastBytes += table.ToastBytes
		s.IndexBytes += table.IndexBytes
	}
	t.line("    %-38s %12s %12s %12s %12s %12s", "tables, with partitions added up", "live tuples", "dead tuples", "heap", "toast", "indexes")
	for _, name := range parents {
		s := sum[name]
		t.line("      %-36s %12s %12s %12s %12s %12s", name, grouped(s.Live), grouped(s.Dead),
			format(float64(s.HeapBytes), bytesUnit), format(float64(s.ToastBytes), bytesUnit), format(float64(s.IndexBytes), bytesUnit))
	}
}

// format writes a value with three or four digits that count and its unit.
func format(v float64, unit string) string {
	switch unit {
	case perSecond:
		return grouped(int64(math.Round(v)))
	case seconds:
		switch {
		case v >= 1:
			return strconv.FormatFloat(v, 'f', 2, 64) + " s"
		case v >= 0.001:
			return strconv.FormatFloat(v*1e3, 'f', 2, 64) + " ms"
		default:
			return strconv.FormatFloat(v*1e6, 'f', 1, 64) + " us"
		}
	case bytesUnit:
		switch {
		case v >= 1<<20:
			return strconv.FormatFloat(v/(1<<20), 'f', 1, 64) + " MiB"
		case v >= 1<<13:
			return strconv.FormatFloat(v/(1<<10), 'f', 1, 64) + " KiB"
		default:
			return strconv.FormatFloat(v, 'f', 1, 64) + " B"
		}
	case count:
		if v >= 1000 {
			return grouped(int64(math.Round(v)))
		}
		return strconv.FormatFloat(v, 'g', 3, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}

// grouped writes thousands apart.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
