package bench

import (
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// latencies counts durations, to a thousandth of their size, from a microsecond to ten minutes. It is used by one
// goroutine at a time.
type latencies struct {
	h *hdrhistogram.Histogram
}

const maxLatency = 10 * time.Minute

func newLatencies() latencies {
	return latencies{hdrhistogram.New(1, maxLatency.Microseconds(), 3)}
}

// record counts n times d.
func (l latencies) record(d time.Duration, n int64) {
	_ = l.h.RecordValues(min(max(d, 0), maxLatency).Microseconds(), n) // in range
}

func (l latencies) merge(other latencies) { l.h.Merge(other.h) }

// metrics returns the percentiles of what was counted.
func (l latencies) metrics(name string) []Metric {
	at := func(q float64) float64 { return float64(l.h.ValueAtQuantile(q)) / 1e6 }
	return []Metric{
		{name + " p50", seconds, at(50)},
		{name + " p99", seconds, at(99)},
		{name + " p99.9", seconds, at(99.9)},
		{name + " max", seconds, float64(l.h.Max()) / 1e6},
	}
}

// median returns 0 for no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// quarters counts messages by the quarter of the measured time in which they were done.
type quarters [4]int64

var quarterLabels = [len(quarters{})]string{"1st", "2nd", "3rd", "4th"}

// add counts n messages that were done at elapsed of total. What was done after the end counts nowhere: the quarters are
// rates of equal spans.
func (q *quarters) add(elapsed, total time.Duration, n int64) {
	if i := int(4 * elapsed / total); i < len(q) {
		q[i] += n
	}
}

func (q *quarters) merge(other quarters) {
	for i := range q {
		q[i] += other[i]
	}
}

// metrics returns the rate of each quarter and the ratio of the last to the first.
func (q quarters) metrics(name string, total time.Duration) []Metric {
	span := total.Seconds() / 4
	all := make([]Metric, 0, 5)
	for i, label := range quarterLabels {
		all = append(all, Metric{name + " in the " + label + " quarter", perSecond, float64(q[i]) / span})
	}
	return append(all, Metric{name + ", 4th quarter to 1st", ratio, divide(float64(q[3]), float64(q[0]))})
}

// thirds are the means of what was seen in each third of the measured time, and the most.
type thirds struct {
	sums, seen [3]int64
	highest    int64
}

func (t *thirds) add(elapsed, total time.Duration, n int64) {
	if i := int(3 * elapsed / total); i < len(t.sums) {
		t.sums[i] += max(n, 0)
		t.seen[i]++
		t.highest = max(t.highest, n)
	}
}

func (t *thirds) metrics(name string) []Metric {
	all := make([]Metric, 0, 5)
	for i, label := range []string{"1st", "2nd", "3rd"} {
		all = append(all, Metric{name + " in the " + label + " third, mean", count, divide(float64(t.sums[i]), float64(t.seen[i]))})
	}
	return append(all,
		Metric{name + ", 3rd third to 1st", ratio, divide(all[2].Value, all[0].Value)},
		Metric{name + ", most", count, float64(t.highest)})
}

func divide(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
