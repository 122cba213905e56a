package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The PostgreSQL majors that fastpubsub runs on.
const (
	minMajor = 14
	maxMajor = 18
)

// binEnv names a directory with server binaries to use instead of searching for one.
const binEnv = "FASTPUBSUB_POSTGRES_BIN"

// ErrNoBinaries means that no usable PostgreSQL server binaries are installed. The error that wraps it says where they
// were looked for, what was passed over and why, and how to get some.
var ErrNoBinaries = errors.New("no PostgreSQL server binaries found")

// programs are what a directory must hold to be of use.
var programs = []string{"postgres", "initdb", "pg_ctl"}

// usualFolders are where packages put server binaries without adding them to PATH.
var usualFolders = []string{
	"/usr/lib/postgresql/*/bin",                               // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                        // PGDG on Red Hat
	"/usr/lib/postgresql*/bin",                                // SUSE
	"/usr/libexec/postgresql*",                                // Alpine
	"/usr/local/pgsql/bin",                                    // built from source
	"/opt/homebrew/opt/postgresql*/bin",                       // Homebrew on Apple silicon
	"/usr/local/opt/postgresql*/bin",                          // Homebrew on Intel
	"/Applications/Postgres.app/Contents/Versions/*/bin",      // Postgres.app
	"/opt/local/lib/postgresql*/bin",                          // MacPorts
	"/Library/PostgreSQL/*/bin", "/usr/local/bin", "/usr/bin", // the rest
}

// Find returns the directory that holds postgres, initdb and pg_ctl of the newest PostgreSQL from 14 to 18 on this
// machine. It looks in PATH, asks pg_config, and tries the places where packages put them.
//
// FASTPUBSUB_POSTGRES_BIN, where set, is the only place looked at, and an error if it is of no use. In all other cases
// the error is ErrNoBinaries.
func Find() (bin string, err error) {
	return find(0)
}

// find is Find for one major; 0 is any.
func find(major int) (string, error) {
	if dir := os.Getenv(binEnv); dir != "" {
		if _, err := examine(dir); err != nil {
			return "", fmt.Errorf("%s=%s: %w", binEnv, dir, err)
		}
		return filepath.Abs(dir)
	}

	var best string
	var newest version
	var skipped []string
	for _, dir := range candidates() {
		v, err := examine(dir)
		switch {
		case errors.Is(err, errIncomplete):
		case err != nil:
			skipped = append(skipped, fmt.Sprintf("%s (%v)", dir, err))
		case major != 0 && v.major != major:
			skipped = append(skipped, fmt.Sprintf("%s (%v)", dir, v))
		case best == "" || newest.less(v):
			best, newest = dir, v
		}
	}
	if best != "" {
		return best, nil
	}

	wanted := fmt.Sprintf("%d to %d", minMajor, maxMajor)
	if major != 0 {
		wanted = strconv.Itoa(major)
	}
	passedOver := ""
	if len(skipped) > 0 {
		passedOver = "; passed over " + strings.Join(skipped, ", ")
	}
	return "", fmt.Errorf("%w: looked for %s of PostgreSQL %s in PATH, pg_config --bindir, %s%s; "+
		"install the PostgreSQL server (apt install postgresql, dnf install postgresql-server, brew install postgresql@17), "+
		"or set %s to the directory that holds them",
		ErrNoBinaries, strings.Join(programs, ", "), wanted, strings.Join(usualFolders, ", "), passedOver, binEnv)
}

// candidates lists the directories to examine, each once, those that the user's own PATH names first.
func candidates() []string {
	var dirs []string
	add := func(dir string) {
		if real, err := filepath.EvalSymlinks(dir); err == nil && !slices.Contains(dirs, real) {
			dirs = append(dirs, real)
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		// Often a link from a general bin directory to the one with all programs of that version.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			add(filepath.Dir(real))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		add(strings.TrimSpace(string(out)))
	}
	for _, pattern := range usualFolders {
		matches, _ := filepath.Glob(pattern) // the only error is a bad pattern
		for _, dir := range matches {
			add(dir)
		}
	}
	return dirs
}

// errIncomplete means that a directory does not hold a whole server.
var errIncomplete = errors.New("incomplete")

// examine returns the version of the server in dir, or why it is of no use.
func examine(dir string) (version, error) {
	for _, name := range programs {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.IsDir() {
			return version{}, fmt.Errorf("%w: no %s there", errIncomplete, name)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return version{}, fmt.Errorf("postgres --version: %w", err)
	}
	v, err := parseVersion(string(out))
	if err != nil {
		return version{}, err
	}
	if v.major < minMajor || v.major > maxMajor {
		return version{}, fmt.Errorf("%v, not %d to %d", v, minMajor, maxMajor)
	}
	return v, nil
}

// version is a PostgreSQL release; the minor of a beta is 0.
type version struct{ major, minor int }

func (v version) less(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

func (v version) String() string { return fmt.Sprintf("PostgreSQL %d.%d", v.major, v.minor) }

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)(?:\.(\d+))?`)

// parseVersion reads the answer of postgres --version, such as "postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)".
func parseVersion(s string) (version, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return version{}, fmt.Errorf("cannot read the version in %q", strings.TrimSpace(s))
	}
	var v version
	v.major, _ = strconv.Atoi(m[1])
	v.minor, _ = strconv.Atoi(m[2])
	return v, nil
}
