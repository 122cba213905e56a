package bench

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 2, 9}, 3},
	} {
		if got := median(test.values); got != test.want {
			t.Errorf("median(%v) = %v, want %v", test.values, got, test.want)
		}
	}
}

func TestQuarters(t *testing.T) {
	t.Parallel()
	const total = 8 * time.Second
	var q, other quarters
	q.add(0, total, 10)
	q.add(2*time.Second-1, total, 10)
	q.add(2*time.Second, total, 30)
	q.add(5*time.Second, total, 40)
	other.add(total-1, total, 50)
	other.add(total, total, 1000) // too late to count
	q.merge(other)
	if want := (quarters{20, 30, 40, 50}); q != want {
		t.Errorf("quarters are %v, want %v", q, want)
	}
	want := []Metric{
		{"done in the 1st quarter", perSecond, 10},
		{"done in the 2nd quarter", perSecond, 15},
		{"done in the 3rd quarter", perSecond, 20},
		{"done in the 4th quarter", perSecond, 25},
		{"done, 4th quarter to 1st", ratio, 2.5},
	}
	if diff := cmp.Diff(want, q.metrics("done", total)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestLatencies(t *testing.T) {
	t.Parallel()
	l, other := newLatencies(), newLatencies()
	l.record(time.Millisecond, 98)
	l.record(-time.Second, 1)  // a clock that steps back
	other.record(time.Hour, 1) // longer than is counted
	l.merge(other)
	want := []Metric{{"x p50", seconds, 0.001}, {"x p99", seconds, 0.001}, {"x p99.9", seconds, 600}, {"x max", seconds, 600}}
	if diff := cmp.Diff(want, l.metrics("x"), cmpopts.EquateApprox(0.001, 0)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestDelivery(t *testing.T) {
	t.Parallel()
	committed := []stretch{{10, 20, 2_000_000}, {0, 10, 1_000_000}}
	l := delivery(committed, []*record{{[]stretch{{0, 5, 2_000_000}, {5, 15, 4_000_000}}}, {[]stretch{{15, 20, 1_000_000}}}})
	got := make(map[int64]int64) // by microseconds
	for _, bar := range l.h.Distribution() {
		if bar.Count > 0 {
			got[bar.From] = bar.Count
		}
	}
	if diff := cmp.Diff(map[int64]int64{0: 5, 1000: 5, 2000: 5, 3000: 5}, got); diff != "" {
		t.Errorf("messages by delay (-want +got):\n%s", diff)
	}
}
