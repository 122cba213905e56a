package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/internal/bench"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestBenchHTTP measures for a moment: what it checks is that every workload runs, and gets back what it published.
func TestBenchHTTP(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a dozen servers")
	}
	db := storetest.New(t)
	pool, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	report, err := bench.Run(t.Context(), bench.Config{
		Database: pool, Workloads: bench.HTTPWorkloads, Duration: 200 * time.Millisecond, Messages: 1000, Rounds: 1,
		Command: func(subcommand string) *exec.Cmd {
			cmd := command(t, subcommand)
			cmd.WaitDelay = 0
			return cmd
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	figure := func(workload, phase int, name string) bench.Figure {
		t.Helper()
		p := report.Workloads[workload].Phases[phase]
		i := slices.IndexFunc(p.Figures, func(f bench.Figure) bool { return f.Name == name })
		if i < 0 {
			t.Errorf("%s: there is no %q", p.Title, name)
			return bench.Figure{}
		}
		return p.Figures[i]
	}
	for _, test := range []struct {
		workload, phase int
		name            string
		floor           bool
	}{
		{0, 0, "messages", true},
		{0, 1, "call p99", true},
		{1, 0, "messages", true},
		{1, 1, "messages", true},
		{1, 1, "messages to those of: HTTP publish, 8 clients, 100 a request, 0 subscriptions", false},
		{2, 0, "messages", true},
		{2, 0, "ack p50", false},
		{3, 0, "from send to consumed p99", false},
		{4, 0, "publish meanwhile p50", false},
		{5, 0, "start to ready p50", false},
	} {
		if f := figure(test.workload, test.phase, test.name); f.Median <= 0 || (f.Floor != nil) != test.floor {
			t.Errorf("odd figure %+v", f)
		}
	}
	var table bytes.Buffer
	if err := report.WriteTable(&table); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"HTTP-PUBLISH", "HTTP-START", "x floor", "HTTP floor, 32 clients, 1 a request", "processes of their own"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q", want)
		}
	}
	if _, err := json.Marshal(report); err != nil {
		t.Error(err)
	}
}
