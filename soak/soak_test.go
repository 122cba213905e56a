package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// TestMain lets this program be the processes that soak starts, too.
func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv(childEnv); ok {
		if err := runChild(text); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

func needServer(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it takes a while")
	}
	srv, err := pgserver.Start(t.Context(), pgserver.Options{})
	if errors.Is(err, pgserver.ErrNoBinaries) || errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("NOT TESTED: it needs a server of its own that it can kill: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Stop(); err != nil {
		t.Fatal(err)
	}
}

func runFor(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	var out bytes.Buffer
	code = run(t.Context(), args, &out, &out)
	return code, out.String()
}

// TestBroken takes protections out of the engine: soak must notice each, if not at once then with another seed, and show the
// history of a message that was harmed.
func TestBroken(t *testing.T) {
	needServer(t)
	for _, name := range protectionNames() {
		t.Run(name, func(t *testing.T) {
			for range 5 {
				code, output := runFor(t, "--duration", "15s", "--break", name)
				if code == 0 {
					continue
				}
				broken := regexp.MustCompile(`(?m)^broken: .*`).FindString(output)
				if broken == "" || !strings.Contains(output, "FAILED: seed ") {
					t.Fatalf("exit code %d:\n%s", code, output)
				}
				if strings.Contains(broken, ": message ") && !regexp.MustCompile(`(?m)^\t\d\d:\d\d:\d\d\.\d{3} .*publish begins`).MatchString(output) {
					t.Errorf("no history:\n%s", output)
				}
				t.Logf("as it should: %s", broken)
				ledger := regexp.MustCompile(`ledger (\S+)`).FindStringSubmatch(output)[1]
				if err := os.RemoveAll(strings.TrimSuffix(ledger, "/ledger")); err != nil {
					t.Error(err)
				}
				return
			}
			t.Error("nothing was noticed")
		})
	}
}

// TestInterrupted ends a soak before its time: what was done so far is accounted for, and nothing is left.
func TestInterrupted(t *testing.T) {
	needServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	var out writerFunc = func(text string) {
		if strings.HasPrefix(text, "seed ") { // it works
			cancel()
		}
	}
	if code := run(ctx, []string{"--duration", "1h"}, out, out); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

type writerFunc func(text string)

func (f writerFunc) Write(p []byte) (int, error) {
	f(string(p))
	return len(p), nil
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--duration", "0s"}, "--duration must be more than 0, not 0s"},
		{[]string{"--publishers", "0"}, "--publishers must be 1 to 20, not 0"},
		{[]string{"--processes", "11"}, "--processes must be 0 to 10, not 11"},
		{[]string{"--break", "x"}, `--break is one of acked-once, late, needed, not "x"`},
		{[]string{"now"}, `unexpected argument "now"`},
	} {
		if code, output := runFor(t, test.args...); code != 2 || !strings.Contains(output, test.want) {
			t.Errorf("%v: exit code %d, %s, want %q", test.args, code, output, test.want)
		}
	}
}
