package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestDoctor(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, nil)
	flags := []string{"doctor", "--database-url=" + db.URL, "--database-schema=" + db.Schema}
	code, stdout, stderr := execute(t.Context(), flags...)
	if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "ok       server         PostgreSQL ") ||
		!strings.Contains(stdout, "-> ALTER ROLE ") || !strings.Contains(stdout, "\n1 notice") && !strings.Contains(stdout, "\n2 notices") {
		t.Errorf("exit code %d, stdout\n%s\nstderr %q", code, stdout, stderr)
	}

	type document struct {
		Severity string
		Findings []struct {
			Check, Severity, Summary, Remedy string
			Facts                            map[string]any
		}
	}
	decode := func(text string) (d document) {
		t.Helper()
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.DisallowUnknownFields()
		whole := struct {
			*document
			Schema        string
			ServerVersion string  `json:"server_version"`
			TookSeconds   float64 `json:"took_seconds"`
		}{document: &d}
		if err := decoder.Decode(&whole); err != nil || decoder.More() || whole.Schema == "" {
			t.Errorf("%v: %s", err, text)
		}
		return d
	}
	code, stdout, stderr = execute(t.Context(), append(flags, "--json")...)
	if d := decode(stdout); code != 0 || stderr != "" || d.Severity != "notice" || len(d.Findings) < 20 || d.Findings[0].Check != "server" {
		t.Errorf("exit code %d, stderr %q, %+v", code, stderr, d)
	}
	code, stdout, stderr = execute(t.Context(), "doctor", "--json", "--database-url="+db.URL, "--database-schema=nowhere")
	if d := decode(stdout); code != 1 || stderr != "" || d.Severity != "error" {
		t.Errorf("exit code %d, stderr %q, %+v", code, stderr, d)
	}
	code, stdout, stderr = execute(t.Context(), "doctor", "--database-url="+nowhere)
	if code != 1 || stderr != "" || !strings.Contains(stdout, "error    connection") || strings.Contains(stdout, "secret") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// An interrupt ends it at once.
func TestDoctorInterrupted(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), db.SQL("LOCK TABLE {schema}.subscriptions IN ACCESS EXCLUSIVE MODE")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begun := time.Now()
	code, stdout, _ := execute(ctx, "doctor", "--database-url="+db.URL, "--database-schema="+db.Schema)
	if took := time.Since(begun); code != 1 || took > time.Minute {
		t.Errorf("exit code %d after %v: %s", code, took, stdout)
	}
}
