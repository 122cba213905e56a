package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// writtenGrowth is a report with a series that grows, and one of payloads.
func writtenGrowth() *Report {
	points := func(sizes []int, cpu ...float64) (all []GrowthPoint) {
		for i, c := range cpu {
			all = append(all, GrowthPoint{Size: sizes[i], Messages: 1000, ServerCPU: ptr(c), P99: 0.01, Metrics: 0.002, Maintenance: 0.003})
		}
		return all
	}
	r := &Report{
		Started: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Server:  Server{Version: "PostgreSQL 15.13 on x86_64, compiled"},
		Client:  Client{CPUs: 2},
		Config:  Config{Duration: 10 * time.Second, Rounds: 1},
		Growth: []Growth{
			{Workload: "growth-backlog", Of: "messages that <wait>", Points: points([]int{10_000, 100_000, 10_000_000}, 2e-5, 3e-5, 6e-5)},
			{Workload: "growth-payload", Of: "bytes a payload", Points: points([]int{200, 1000}, 2e-5, 1e-4)},
		},
	}
	for i := range r.Growth {
		r.Growth[i].judge()
	}
	return r
}

// What is written is well-formed, and has each point where its size and its cost belong: sizes by their logarithm, costs from 0.
func TestGrowthPlot(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	if err := writtenGrowth().WriteGrowthPlots(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "growth-backlog.svg"))
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	var circles [][2]string
	decoder := xml.NewDecoder(strings.NewReader(string(text)))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		switch token := token.(type) {
		case xml.CharData:
			texts = append(texts, string(token))
		case xml.StartElement:
			if token.Name.Local == "circle" {
				circles = append(circles, [2]string{token.Attr[0].Value, token.Attr[1].Value})
			}
		}
	}
	// From 64 to 444 in three powers of ten; from 196 up to 36, where 3.3 is.
	want := [][2]string{{"64.0", "147.5"}, {"190.7", "123.3"}, {"444.0", "50.5"}}
	if len(circles) != len(want) {
		t.Fatalf("%d points in\n%s", len(circles), text)
	}
	for i := range want {
		if circles[i] != want[i] {
			t.Errorf("point %d is at %v, want %v", i, circles[i], want[i])
		}
	}
	all := strings.Join(texts, "|")
	for _, want := range []string{"server CPU a message, times that at the smallest size", "messages that <wait>", "|10,000,000|", "|1.50|", "|3.00|"} {
		if !strings.Contains(all, want) {
			t.Errorf("the plot lacks %q: %s", want, all)
		}
	}
	if text, err = os.ReadFile(filepath.Join(dir, "growth-payload.svg")); err != nil || !strings.Contains(string(text), "server CPU a byte") || !strings.Contains(string(text), ">1.00<") {
		t.Errorf("%v, the plot of payloads is\n%s", err, text)
	}
}

// Figures replace those between the two lines, also those that were written before, and nothing else.
func TestWriteGrowth(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(file, []byte("# Growth\n\n"+GrowthBegin+"\nnone yet\n"+GrowthEnd+"\n\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := writtenGrowth()
	for range 2 {
		if err := r.WriteGrowth(file); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(got)
		if !strings.HasPrefix(text, "# Growth\n\n"+GrowthBegin+"\n\nMeasured on 1 March 2026: PostgreSQL 15.13 on x86_64, on 2 CPUs") ||
			!strings.HasSuffix(text, "\n"+GrowthEnd+"\n\nafter\n") || strings.Contains(text, "none yet") {
			t.Errorf("the page is\n%s", text)
		}
		for _, want := range []string{"### growth-backlog\n", "](page/growth-payload.svg)", "| 100,000 | 1,000 | 1.50 |", "| 1,000 | 1,000 | 1.00 |"} {
			if strings.Count(text, want) != 1 {
				t.Errorf("the page has %q %d times:\n%s", want, strings.Count(text, want), text)
			}
		}
		for _, link := range regexp.MustCompile(`\]\(([^)]+\.svg)\)`).FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), link[1])); err != nil {
				t.Error(err)
			}
		}
	}

	if err := new(Report).WriteGrowthPlots(t.TempDir()); !errors.Is(err, ErrNoGrowth) {
		t.Errorf("plots of nothing: %v", err)
	}
	if err := os.WriteFile(file, []byte("# No place\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteGrowth(file); err == nil || !strings.Contains(err.Error(), "no place for figures") {
		t.Errorf("a page without a place: %v", err)
	}
	if err := r.WriteGrowth(filepath.Join(filepath.Dir(file), "missing.md")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no page: %v", err)
	}
}
