package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// The example checks itself; this checks that it leaves nothing behind.
func TestExample(t *testing.T) {
	db := storetest.New(t)
	t.Setenv("FASTPUBSUB_DATABASE_URL", db.URL)
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil {
		t.Fatalf("%v, after\n%s", err, out.String())
	}
	if !strings.Contains(out.String(), "All of this was checked") {
		t.Errorf("it does not say so:\n%s", out.String())
	}
	const left = `SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname LIKE 'embedded\_example\_%'`
	var n int
	if err := db.Pool.QueryRow(t.Context(), left).Scan(&n); err != nil || n > 0 {
		t.Errorf("%d schemas left, %v", n, err)
	}
}

// A claim that is not true must not pass.
func TestProtocolFails(t *testing.T) {
	var out bytes.Buffer
	p := &protocol{w: &out}
	p.check(1 == 2, "rows: %d", 1)
	p.check(true, "more")
	if p.err == nil || out.Len() > 0 {
		t.Errorf("error %v, output %q", p.err, out.String())
	}
}
