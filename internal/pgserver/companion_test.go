package pgserver_test

import (
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

func TestCompanion(t *testing.T) {
	t.Parallel()
	run := func(wait bool, program string, args ...string) string {
		t.Helper()
		c, err := pgserver.StartCompanion(t.Context(), program, args, map[string]string{"secret": "the content\n"})
		if err != nil {
			t.Fatal(err)
		}
		if wait {
			<-c.Done()
		}
		output, err := c.Stop()
		if err != nil {
			t.Error(err)
		}
		<-c.Done()
		return output
	}
	if got := run(true, "cat", "secret"); got != "the content\n" {
		t.Errorf("it read %q", got)
	}
	got := run(true, "ls", "-ln", "secret")
	if fields := strings.Fields(got); len(fields) < 3 || !strings.HasPrefix(fields[0], "-rw-------") || fields[2] == "0" {
		t.Errorf("the file is %q", got)
	}
	if got := run(false, "sleep", "1000"); got != "" {
		t.Errorf("it printed %q", got)
	}
	if _, err := pgserver.StartCompanion(t.Context(), "no such program", nil, nil); err == nil {
		t.Error("what does not exist was started")
	}
}
