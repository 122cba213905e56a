package main

import (
	"errors"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// TestTrial runs small phases of the systems that need nothing but PostgreSQL, and looks at what came of every message.
func TestTrial(t *testing.T) {
	if testing.Short() {
		t.Skip("starts PostgreSQL servers")
	}
	bin, err := pgserver.Find()
	if errors.Is(err, pgserver.ErrNoBinaries) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	o := &options{PGBin: bin, Clients: 2, Window: 1000, Rounds: 1, Duration: 200 * time.Millisecond, Backlog: 500}
	r := newRunner(o)
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	phases := []*phase{
		{title: "publish", batch: 10, groups: 1, duration: o.Duration},
		{title: "drain", batch: 10, groups: 1, backlog: o.Backlog, consume: true},
		{title: "fan-out", batch: 10, groups: 3, duration: o.Duration, consume: true},
		{title: "pinned", batch: 10, groups: 1, duration: o.Duration, consume: true, hold: holdSnapshot},
	}
	for _, sys := range []*system{fastpubsubSystem, consumeSystem, skipLockedSystem, riverSystem, watermillSystem} {
		for _, p := range phases {
			s, err := r.try(t.Context(), sys, p)
			if err != nil {
				t.Fatalf("%s: %s: %v", sys.name, p.title, err)
			}
			if s.audit.Published == 0 || s.audit != (Audit{Published: s.audit.Published}) {
				t.Errorf("%s: %s: %+v", sys.name, p.title, s.audit)
			}
			if v, ok := s.value(rateMetric); !ok || v <= 0 {
				t.Errorf("%s: %s: %v messages a second", sys.name, p.title, v)
			}
			if len(s.tables) == 0 {
				t.Errorf("%s: %s: no tables", sys.name, p.title)
			}
		}
	}
}
