package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

var (
	shellBlock = regexp.MustCompile("(?ms)^ *```sh([^\\n]*)\\n(.*?)^ *```$")
	goBlock    = regexp.MustCompile("(?ms)^```go\\n(.*?)^```$")
)

// shellBlocks returns what the README has a reader type, but for blocks that need Docker or Kubernetes.
func shellBlocks(t *testing.T) []string {
	t.Helper()
	var blocks []string
	for _, m := range shellBlock.FindAllStringSubmatch(document(t, "README.md"), -1) {
		switch tag := strings.TrimSpace(m[1]); tag {
		case "":
			blocks = append(blocks, m[2])
		case "docker", "k8s":
		default:
			t.Errorf("there is no tag %q", tag)
		}
	}
	return blocks
}

// readmePrelude stands for what is around a reader: a network for the clone, a terminal for what runs on, another for the rest.
// Everything else is what it says, in one shell, in which a command that fails ends the test.
//
// The command is this test program. What would take minutes, or be this test once more, is only read.
const readmePrelude = `
set -euo pipefail
fastpubsub() { FASTPUBSUB_TEST_MAIN=1 "$TEST_BINARY" -test.run='^TestMainProcess$' -- "$@"; }
git() {
	[[ "$*" == "clone https://github.com/fastpubsub/fastpubsub" ]]
	ln -s "$TEST_REPOSITORY" fastpubsub
}
cd() { command cd -P "$@"; [[ $PWD == "$TEST_REPOSITORY" ]] && command cd "$TEST_FOLDER"; }
go() {
	case "$*" in
	"run ./cmd/fastpubsub dev") touch dev-was-started ;;  # the test has
	"test ./...") (command cd "$TEST_REPOSITORY" && command go list ./... >/dev/null) ;;
	"run ./cmd/fastpubsub bench"*) fastpubsub bench --help >/dev/null ;;
	"build ./cmd/fastpubsub") printf '%s\n' '#!/bin/bash' 'exec env FASTPUBSUB_TEST_MAIN=1 "$TEST_BINARY" -test.run="^TestMainProcess$" -- "$@"' >fastpubsub; chmod +x fastpubsub ;;
	"run ./examples/"*) (command cd "$TEST_REPOSITORY" && env -u FASTPUBSUB_DATABASE_URL go "$@") ;;
	*) echo "go $* is not known to the test" >&2; return 1 ;;
	esac
}
curl() { command curl -sS --fail-with-body "$@" && echo; }
serve() {
	"$@" & server=$!
	until ./fastpubsub healthcheck 2>/dev/null; do kill -0 $server; sleep 0.05; done
	[[ ${FASTPUBSUB_AUTH_ENABLED:-} ]] || end # the next block is another terminal
}
end() { kill -INT $server; wait $server; }
doctor() { "$@" || [[ $? == 1 ]]; } # it may find something
`

// readmeScript puts the test's values in the place of the reader's.
func readmeScript(blocks []string, api, database string) string {
	var script strings.Builder
	script.WriteString(readmePrelude)
	for i, block := range blocks {
		if strings.Contains(block, "/oauth/token") { // it is for a server that authenticates
			block = strings.Replace(block, "http://127.0.0.1:8000", "http://127.0.0.1:$FASTPUBSUB_API_PORT", 1) +
				"end; unset FASTPUBSUB_AUTH_ENABLED FASTPUBSUB_AUTH_SECRET_KEY\n"
		}
		fmt.Fprintf(&script, "echo '### block %d'\n%s", i+1, strings.NewReplacer(
			"http://127.0.0.1:8000", api,
			"postgres://USER:PASSWORD@HOST:5432/DATABASE", database,
			"./fastpubsub server\n", "serve ./fastpubsub server\n",
			"./fastpubsub doctor\n", "doctor ./fastpubsub doctor\n",
			"./fastpubsub create_client \"Admin\" \"*\"\n",
			"./fastpubsub create_client \"Admin\" \"*\" >client; ID=$(sed -n s/client_id=//p client) SECRET=$(sed -n s/client_secret=//p client)\n",
			" SUBSCRIPTION ID...", " picky $ID", " SUBSCRIPTION", " picky",
		).Replace(block))
	}
	return script.String()
}

// TestReadme does what the README says, in its order, beside a dev server.
func TestReadme(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	for _, tool := range []string{"bash", "curl", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("NOT TESTED: the README's commands need %s: %v", tool, err)
		}
	}
	d := startDev(t, devFolder(t))
	defer d.end(t, syscall.SIGINT)
	makePythonTables(t, d.database)
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if repository, err = filepath.EvalSymlinks(repository); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "go.mod"), nil, 0o600); err != nil { // it stands for the clone
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-c", readmeScript(shellBlocks(t), d.api, d.database))
	shell.Dir = t.TempDir()
	shell.Env = append(os.Environ(), "TEST_BINARY="+os.Args[0], "TEST_REPOSITORY="+repository, "TEST_FOLDER="+folder,
		"FASTPUBSUB_API_PORT="+freePort(t))
	var out bytes.Buffer
	shell.Stdout, shell.Stderr = &out, &out
	shell.WaitDelay = time.Second
	if err := shell.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if _, err := os.Stat(filepath.Join(folder, "dev-was-started")); err != nil {
		t.Error("the README does not start dev")
	}

	// What it says that comes of it, in this order.
	rest := out.String()
	for _, want := range []string{
		`{"ids":["`, // of two messages
		`"payload":{"event": "user.created", "country": "BR"}`, // the filtered subscription has one of them
		`{"count":2}`, // the last answer
		`"dlq":1`,
		`"payload":{"event": "user.deleted"}`,
		"message=schema is up to date",
		"message=listening",
		"message=stopped",
		`{"id":"payments","created_at":`, // with a token
		`"secret":"`,                     // of the client that may publish there
		"count=0",                        // reprocess: it was taken out of the queue before
		"count=0",
		`"payload":{"event": "user.created", "country": "BR"},"delivery_attempts":1,`, // tail
		`"attributes":{"source":"shell"}`,
		`"payload":{"n": 1}`,
		`"payload":{"n": 2}`,
		"topics=2 new=2\nsubscriptions=3 new=3\nclients=1 new=1\nmessages=2503 new=2503\ndead_letters=1 new=1\nrefused=0\n", // dry
		"topics=2 new=2\nsubscriptions=3 new=3\nclients=1 new=1\nmessages=2503 new=2503\ndead_letters=1 new=1\nrefused=0\n",
	} {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("%q does not come, or not in its place, in:\n%s", want, out.String())
		}
		rest = after
	}
	if example := "topics=2 new=2\n"; !strings.Contains(document(t, "README.md"), example) {
		t.Errorf("the README has no %q", example)
	}
}

// makePythonTables gives a database what a Python server could have in it, and nothing that is refused.
func makePythonTables(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	const fitting = `
DELETE FROM {python}.subscription_messages WHERE subscription_id = 'odd' OR payload = '[1]';
DELETE FROM {python}.subscriptions WHERE id IN ('odd', 'lost');
DELETE FROM {python}.clients WHERE name = 'Old';
UPDATE {python}.topics SET id = 'invoices' WHERE id = '..'`
	sql := strings.NewReplacer("CREATE SCHEMA {python};", "", "{python}", "public", "'south'", "'north'"). // the tour has a south
														Replace(pythonTables + fitting)
	if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
}

// freePort returns a port that nobody listens on at this moment.
func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return fmt.Sprint(listener.Addr().(*net.TCPAddr).Port)
}

// partOfProgram is what a block of the README without a package is put into.
const partOfProgram = `package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/client"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

var (
	_ = json.Unmarshal
	_ = os.Getenv
	_ = client.New
)

type Order struct{}

func sendMail(context.Context, Order) error { return nil }

func main() {}

func part(ctx context.Context, broker *fastpubsub.Broker, mux *http.ServeMux, _ pgx.Tx, _ httpapi.Config) (err error) {
	{
		%s
		_ = err
	}
	return err
}
`

// The Go code in the README compiles, each block as a program or as a part of one.
func TestReadmeGo(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("NOT TESTED: compiling needs go: %v", err)
	}
	blocks := goBlock.FindAllStringSubmatch(document(t, "README.md"), -1)
	if len(blocks) == 0 {
		t.Fatal("there is none")
	}
	for i, m := range blocks {
		text := m[1]
		if !strings.HasPrefix(text, "package ") {
			text = fmt.Sprintf(partOfProgram, text)
		}
		// An overlay puts the file into this module without writing there.
		dir := t.TempDir()
		source, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json")
		target, err := filepath.Abs(fmt.Sprintf("../../examples/readme%d/main.go", i))
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{source: text, overlay: fmt.Sprintf(`{"Replace": {%q: %q}}`, target, source)} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		build := exec.CommandContext(t.Context(), "go", "build", "-o", os.DevNull, "-overlay="+overlay, fmt.Sprintf("./examples/readme%d", i))
		build.Dir = "../.."
		if text, err := build.CombinedOutput(); err != nil {
			t.Errorf("block %d: %v\n%s", i+1, err, text)
		}
	}
}
