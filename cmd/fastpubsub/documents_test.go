package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

// settings returns the default of each variable that is a flag: of the server, if it is one of its.
func settings(t *testing.T) map[string]string {
	t.Helper()
	var c commands
	parser, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	defaults := make(map[string]string)
	var add func(node *kong.Node)
	add = func(node *kong.Node) {
		for _, flag := range node.Flags {
			for _, name := range flag.Envs {
				if _, ok := defaults[name]; !ok || node.Name == "server" {
					defaults[name] = flag.Default
				}
			}
		}
		for _, child := range node.Children {
			add(child)
		}
	}
	add(parser.Model.Node)
	return defaults
}

// document reads a file of the repository's root.
func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// withoutFlags are read elsewhere.
var withoutFlags = map[string]string{"FASTPUBSUB_POSTGRES_BIN": "", "FASTPUBSUB_POSTGRES_USER": ""}

// env.sample has each variable once, with its default, and a comment above it.
func TestEnvSample(t *testing.T) {
	t.Parallel()
	want := settings(t)
	for name := range withoutFlags {
		want[name] = ""
	}
	want["FASTPUBSUB_DATABASE_URL"] = "postgresql://fastpubsub:fastpubsub@localhost:5432/fastpubsub" // that of make start-postgresql
	got := make(map[string]string)
	above := ""
	text := document(t, "env.sample")
	for line := range strings.SplitSeq(text, "\n") {
		if m := regexp.MustCompile(`^#?(FASTPUBSUB_\w+)=(.*)$`).FindStringSubmatch(line); m != nil {
			if _, ok := got[m[1]]; ok {
				t.Errorf("%s is there twice", m[1])
			}
			if !strings.HasPrefix(above, "# ") {
				t.Errorf("%s has no comment", m[1])
			}
			got[m[1]] = m[2]
		}
		above = line
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-flags +env.sample):\n%s", diff)
	}
	// As it is, it sets the database, and nothing else; without its hashes it sets the defaults.
	var bad badSettings
	if set := parseDotEnv(&bad, text); len(set) != 1 || bad != nil {
		t.Errorf("it sets %v, %v", set, bad)
	}
	for _, v := range parseDotEnv(&bad, strings.ReplaceAll(text, "#FASTPUBSUB_", "FASTPUBSUB_")) {
		if v.value != want[v.name] {
			t.Errorf("%s is read as %q, want %q", v.name, v.value, want[v.name])
		}
	}
	if bad != nil {
		t.Error(bad)
	}
}

// The README's table has each variable with its default in code, or words where there is none.
func TestReadmeSettings(t *testing.T) {
	t.Parallel()
	want := settings(t)
	for name := range withoutFlags {
		want[name] = ""
	}
	readme := document(t, "README.md")
	for _, m := range regexp.MustCompile("(?m)^\\| `(FASTPUBSUB_\\w+)` \\| ([^|]*?) ?\\|").FindAllStringSubmatch(readme, -1) {
		name, cell := m[1], m[2]
		value, ok := want[name]
		switch {
		case !ok:
			t.Errorf("%s is no setting, or is there twice", name)
		case strings.Contains(value, " "):
			if cell != "below" || !strings.Contains(readme, "\n"+value+"\n") {
				t.Errorf("%s: its default must stand below the table: %s", name, value)
			}
		case value != "" && cell != "`"+value+"`", value == "" && strings.HasPrefix(cell, "`") && name != "FASTPUBSUB_POSTGRES_USER":
			t.Errorf("%s: its default is %q, the table has %s", name, value, cell)
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is missing", name)
	}
}

// The README's table of commands has each of them.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	parser, err := kong.New(&commands{})
	if err != nil {
		t.Fatal(err)
	}
	readme := document(t, "README.md")
	for _, node := range parser.Model.Leaves(true) {
		name := node.Name
		if node.Parent != parser.Model.Node {
			name = node.Parent.Name + " " + name
		}
		if !regexp.MustCompile("(?m)^\\| `" + regexp.QuoteMeta(name) + "[` ]").MatchString(readme) {
			t.Errorf("%s is missing", name)
		}
	}
}
