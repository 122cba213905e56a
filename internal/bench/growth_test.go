package bench

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// TestGrowth runs every series at small sizes.
func TestGrowth(t *testing.T) {
	config, db := newConfig(t)
	config.Workloads = slices.Clone(GrowthWorkloads)
	if _, err := pgserver.FindPgBouncer(); errors.Is(err, pgserver.ErrNoPgBouncer) {
		t.Log("NOT TESTED: growth-connections needs PgBouncer")
		config.Workloads = slices.DeleteFunc(config.Workloads, func(w string) bool { return w == "growth-connections" })
	}
	config.GrowthScale = 0.02
	if testing.Short() {
		config.GrowthScale = 0.001
	}
	report, err := Run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if n := schemas(t, db); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
	if len(report.Growth) != len(config.Workloads) {
		t.Fatalf("%d series, want %d", len(report.Growth), len(config.Workloads))
	}
	for _, g := range report.Growth {
		if len(g.Points) < 2 && !testing.Short() {
			t.Errorf("%s has %d sizes", g.Workload, len(g.Points))
		}
		for i, p := range g.Points {
			if p.Messages <= 0 || p.P99 <= 0 || i > 0 && p.Size <= g.Points[i-1].Size {
				t.Errorf("%s: odd point %+v", g.Workload, p)
			}
		}
	}
	var table bytes.Buffer
	if err := report.WriteTable(&table); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"GROWTH-BACKLOG", "\nGROWTH\n", "subscriptions of one topic", "times as much at the largest size as at the smallest", "a byte costs"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q", want)
		}
	}
}

func TestGrowthVerdicts(t *testing.T) {
	t.Parallel()
	point := func(size int, messages, cpu float64) GrowthPoint {
		p := GrowthPoint{Size: size, Messages: messages}
		if cpu > 0 {
			p.ServerCPU = ptr(cpu)
		}
		return p
	}
	for _, test := range []struct {
		name   string
		growth Growth
		want   string
		ratio  float64
	}{
		{"CPU decides", Growth{Points: []GrowthPoint{point(1, 100, 1), point(10, 10, 9), point(100, 100, 1.25)}}, "flat", 1.25},
		{"more", Growth{Points: []GrowthPoint{point(1, 100, 1), point(10, 100, 2)}}, "grows", 2},
		{"less", Growth{Points: []GrowthPoint{point(1, 100, 2), point(10, 100, 1)}}, "falls", 0.5},
		{"without CPU", Growth{Points: []GrowthPoint{point(1, 100, 0), point(10, 25, 0)}}, "grows", 4},
		{"bytes", Growth{Workload: "growth-payload", Points: []GrowthPoint{point(100, 100, 1), point(1000, 10, 10)}}, "flat", 1},
		{"one size", Growth{Points: []GrowthPoint{point(1, 100, 1)}}, "flat", 1},
	} {
		test.growth.judge()
		if test.growth.Verdict != test.want || test.growth.Ratio != test.ratio {
			t.Errorf("%s: %s, %v, want %s, %v", test.name, test.growth.Verdict, test.growth.Ratio, test.want, test.ratio)
		}
	}
}

func TestGrowthSizes(t *testing.T) {
	t.Parallel()
	g := growth{sizes: []int{10, 300, 10_000}}
	for scale, want := range map[float64][]int{1: {10, 300, 10_000}, 0.1: {10, 30, 1000}, 0.01: {10, 100}, 1e-9: {10}} {
		if got := g.scaled(scale); !slices.Equal(got, want) {
			t.Errorf("scale %v: sizes %v, want %v", scale, got, want)
		}
	}
}
