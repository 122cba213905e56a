package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// logged returns what a format makes of a few records.
func logged(t *testing.T, format string) string {
	t.Helper()
	var out bytes.Buffer
	handler, err := newLogHandler(&out, format, slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(handler)
	logger.Debug("not printed")
	logger.Warn("two\nlines", "n", 1, "text", "a b")
	logger.With("id", "x").WithGroup("g").Info("plain", "k", "v")
	logger.Error("no attributes")
	return out.String()
}

func TestLogFormat(t *testing.T) {
	t.Parallel()
	pid := fmt.Sprint(os.Getpid())
	for _, test := range []struct{ format, want string }{
		{defaultLogFormat, `^asctime=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} level=WARNING pathname=\S*/logformat_test\.go line=\d+ message=two\\nlines n=1 text="a b"
asctime=.* level=INFO pathname=\S+ line=\d+ message=plain id=x g\.k=v
asctime=.* level=ERROR pathname=\S+ line=\d+ message=no attributes
$`},
		{"%(levelname)-8s|%(levelno)03d|%(lineno)5d|%%|%(message).3s|", `^WARNING |030|\s+\d+|%|two\| n=1 text="a b"\nINFO    \|020\|`},
		{"%(process)d %(process)s %(name)s %(module)s %(filename)s %(funcName)s", "^" + pid + " " + pid + ` fastpubsub logformat_test logformat_test\.go logged n=1`},
		{"%(created)f %(msecs)03d %(relativeCreated)d %(thread)d", `^\d+\.\d{6} \d{3} \d+ 0 n=1`},
		{"%(processName)s %(threadName)s %(taskName)s %(msecs)s", `^MainProcess MainThread None \d+ n=1`},
		{"text", `^time=\S+ level=WARN msg="two\\nlines" n=1 text="a b"\ntime=`},
	} {
		if got := logged(t, test.format); !regexp.MustCompile(test.want).MatchString(got) {
			t.Errorf("%s made %s", test.format, got)
		}
	}
	for line := range strings.Lines(logged(t, "JSON")) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	for format, want := range map[string]string{
		"jso":             "must be json, text, or have a field like %(message)s",
		"":                "must be json, text, or have a field like %(message)s",
		"%(mesage)s":      "there is no field %(mesage)",
		"%(message)d":     "%(message) is text, so it ends with s, not d",
		"%(message)s %s":  `% must begin a field like %(message)s, or be doubled, at "%s"`,
		"100%":            `% must begin a field like %(message)s, or be doubled, at "%"`,
		"%(message)x":     `% must begin a field like %(message)s, or be doubled, at "%(message)x"`,
		"{message}":       "must be json, text, or have a field like %(message)s",
		"%(message)s %(n": `% must begin a field like %(message)s, or be doubled, at "%(n"`,
	} {
		if _, err := newLogHandler(&bytes.Buffer{}, format, slog.LevelInfo); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", format, err, want)
		}
	}
}

// Lines of different goroutines are whole.
func TestLogFormatTogether(t *testing.T) {
	t.Parallel()
	var out syncBuffer
	handler, err := newLogHandler(&out, "%(message)s", slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			logger := slog.New(handler).With("id", i)
			for range 100 {
				logger.Info("m", "n", i)
			}
		})
	}
	wg.Wait()
	for line := range strings.Lines(out.String()) {
		var id, n int
		if _, err := fmt.Sscanf(line, "m id=%d n=%d\n", &id, &n); err != nil || id != n {
			t.Fatalf("%q: %v", line, err)
		}
	}
}
