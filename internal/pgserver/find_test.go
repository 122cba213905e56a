package pgserver_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// fakeBin makes a directory with programs that answer --version only.
func fakeBin(t *testing.T, version string, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range programs {
		script := fmt.Sprintf("#!/bin/sh\necho '%s (PostgreSQL) %s'\n", name, version)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The tests of Find set environment variables, so they do not run in parallel.

func TestFindInEnvironment(t *testing.T) {
	whole := []string{"postgres", "initdb", "pg_ctl"}
	for _, test := range []struct {
		name     string
		version  string
		programs []string
		wantErr  string
	}{
		{"OK", "15.13 (Debian 15.13-0+deb12u1)", whole, ""},
		{"Oldest", "14.0", whole, ""},
		{"Beta", "18beta2", whole, ""},
		{"TooOld", "13.9", whole, "PostgreSQL 13.9, not 14 to 18"},
		{"TooNew", "19devel", whole, "PostgreSQL 19.0, not 14 to 18"},
		{"NoVersion", "unknown", whole, "cannot read the version"},
		{"NoInitdb", "15.1", []string{"postgres", "pg_ctl"}, "no initdb there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := fakeBin(t, test.version, test.programs...)
			t.Setenv("FASTPUBSUB_POSTGRES_BIN", dir)
			bin, err := pgserver.Find()
			if test.wantErr == "" {
				if err != nil || bin != dir {
					t.Errorf("Find returns %q, %v; want %q", bin, err, dir)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "FASTPUBSUB_POSTGRES_BIN="+dir+": ") ||
				!strings.Contains(err.Error(), test.wantErr) {
				t.Errorf("error is %v; want one with %q and the variable", err, test.wantErr)
			}
			if errors.Is(err, pgserver.ErrNoBinaries) {
				t.Error("a wrong setting is not ErrNoBinaries")
			}
		})
	}
}

func TestFindInPath(t *testing.T) {
	// A minor that no release reaches, of the newest major, wins whatever else is installed.
	dir := fakeBin(t, "18.9999", "postgres", "initdb", "pg_ctl")
	links := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "postgres"), filepath.Join(links, "postgres")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FASTPUBSUB_POSTGRES_BIN", "")
	t.Setenv("PATH", links+":"+os.Getenv("PATH"))
	want, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if bin, err := pgserver.Find(); err != nil || bin != want {
		t.Errorf("Find returns %q, %v; want %q", bin, err, want)
	}
}
