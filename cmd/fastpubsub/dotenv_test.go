package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDotEnv(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		reason, line, want string
	}{
		{"plain", `FASTPUBSUB_A=b`, "b"},
		{"white space", " FASTPUBSUB_A =  b c \t", "b c"},
		{"export", `export FASTPUBSUB_A=b`, "b"},
		{"carriage return", "FASTPUBSUB_A=b\r", "b"},
		{"byte order mark", "\ufeffFASTPUBSUB_A=b", "b"},
		{"comment", `FASTPUBSUB_A=b # c`, "b"},
		{"a hash that is none", `FASTPUBSUB_A=b#c`, "b#c"},
		{"only a comment", `FASTPUBSUB_A= # c`, ""},
		{"nothing", `FASTPUBSUB_A=`, ""},
		{"URL", `FASTPUBSUB_A=postgres://u:p%40=@h/d?a=b&c=d`, "postgres://u:p%40=@h/d?a=b&c=d"},
		{"no interpolation", `FASTPUBSUB_A=${HOME}$X`, "${HOME}$X"},
		{"single quotes", `FASTPUBSUB_A='b # \n "c"' # d`, `b # \n "c"`},
		{"double quotes", `FASTPUBSUB_A="b # \"c\" \\ \t\d"`, "b # \"c\" \\ \t\\d"},
		{"empty quotes", `FASTPUBSUB_A=""`, ""},
		{"format", `FASTPUBSUB_A=level=%(levelname)s message=%(message)s`, "level=%(levelname)s message=%(message)s"},
		{"the last counts", "FASTPUBSUB_A=a\nFASTPUBSUB_A=b", "b"},
	} {
		var bad badSettings
		got := parseDotEnv(&bad, test.line)
		if err := bad.err(); err != nil || len(got) != 1 || got[0] != (variable{"FASTPUBSUB_A", test.want}) {
			t.Errorf("%s: %q, %v, want %q", test.reason, got, err, test.want)
		}
	}
	for _, line := range []string{"", "# FASTPUBSUB_A=b", "PGPASSWORD='", "FASTPUBSUB_A", "fastpubsub_a=b", "XFASTPUBSUB_A=b", "FASTPUBSUB_A-B=c", "\x00"} {
		var bad badSettings
		if got := parseDotEnv(&bad, line); len(got) > 0 || bad != nil {
			t.Errorf("%q is %v, %v", line, got, bad)
		}
	}
	var bad badSettings
	parseDotEnv(&bad, "\nFASTPUBSUB_A='secret\nFASTPUBSUB_B=\"secret\" x\nFASTPUBSUB_C=\"secret\\\"")
	want := badSettings{"FASTPUBSUB_A: line 2 of .env: the quote is not closed", "FASTPUBSUB_B: line 3 of .env: there is something behind the closing quote",
		"FASTPUBSUB_C: line 4 of .env: the quote is not closed"}
	if diff := cmp.Diff(want, bad); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The environment wins over the file, and a flag over both.
func TestLoadDotEnv(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	names := []string{"FASTPUBSUB_API_HOST", "FASTPUBSUB_API_PORT", "FASTPUBSUB_LOG_LEVEL", "FASTPUBSUB_ACK_MAX_IDS"}
	for _, name := range names { // so that they are put back
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	if err := loadDotEnv(); err != nil { // there is no file
		t.Fatal(err)
	}
	text := "FASTPUBSUB_API_HOST=from-file\nFASTPUBSUB_API_PORT=1\nFASTPUBSUB_LOG_LEVEL=debug\nFASTPUBSUB_ACK_MAX_IDS=\nPATH=/nowhere\n"
	if err := os.WriteFile(dotEnvName, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FASTPUBSUB_API_PORT", "2")
	t.Setenv("FASTPUBSUB_LOG_LEVEL", "")
	unsetEmpty()
	if err := loadDotEnv(); err != nil {
		t.Fatal(err)
	}
	c := parse(t, "--api-host=from-flag")
	if got := []string{c.APIHost, c.APIPort, c.LogLevel, c.AckMaxIDs, os.Getenv("FASTPUBSUB_API_HOST")}; !cmp.Equal(got, []string{"from-flag", "2", "debug", "1000", "from-file"}) {
		t.Errorf("settings %q", got)
	}
	if os.Getenv("PATH") == "/nowhere" {
		t.Error("PATH was set")
	}

	for reason, text := range map[string]string{
		"must be UTF-8":                    "\xff",
		"must have at most 1048576 bytes":  strings.Repeat("\n", maxDotEnvBytes+1),
		"line 1 of .env: the quote is not": "FASTPUBSUB_API_HOST='secret",
	} {
		if err := os.WriteFile(dotEnvName, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := loadDotEnv(); err == nil || !strings.Contains(err.Error(), reason) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v, want %s", err, reason)
		}
	}
	if err := os.Remove(dotEnvName); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, dotEnvName), 0o700); err != nil { // a Python environment is often called so
		t.Fatal(err)
	}
	if err := loadDotEnv(); err != nil {
		t.Errorf("a folder: %v", err)
	}
}

func FuzzParseDotEnv(f *testing.F) {
	f.Add("FASTPUBSUB_A='b' # c\nexport FASTPUBSUB_B=\"\\n\"\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		var bad badSettings
		for _, v := range parseDotEnv(&bad, text) {
			if !strings.HasPrefix(v.name, "FASTPUBSUB_") || !strings.Contains(text, v.name) {
				t.Errorf("%q", v.name)
			}
		}
	})
}
