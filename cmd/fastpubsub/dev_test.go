package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// mainEnv makes TestMainProcess be the command, so that it can be given signals.
const mainEnv = "FASTPUBSUB_TEST_MAIN"

func TestMainProcess(t *testing.T) {
	if os.Getenv(mainEnv) == "" {
		return
	}
	_, args, _ := strings.Cut(strings.Join(os.Args, "\n"), "\n--\n")
	os.Args = append(os.Args[:1], strings.Split(args, "\n")...)
	main()
}

const devTimeout = 5 * time.Minute

// command returns the command with arguments, not started. It is killed when the test ends.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), devTimeout)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], append([]string{"-test.run=^TestMainProcess$", "--"}, args...)...)
	cmd.Env = append(os.Environ(), mainEnv+"=1", "FASTPUBSUB_API_PORT=0")
	cmd.WaitDelay = time.Second
	return cmd
}

// A dev is a running "fastpubsub dev".
type dev struct {
	cmd      *exec.Cmd
	stderr   bytes.Buffer
	api      string
	database string
	session  []request
}

// A request is what a line of the printed session asks for.
type request struct{ body, url string }

var (
	apiLine      = regexp.MustCompile(`^  API +(http://\S+)$`)
	databaseLine = regexp.MustCompile(`^  Database +(postgres://\S+)$`)
	curlLine     = regexp.MustCompile(`^  curl (?:-H 'Content-Type: application/json' -d '([^']+)' )?'?(http://[^' ]+)'?$`)
)

// startDev returns when everything is printed.
func startDev(t *testing.T, dir string) *dev {
	t.Helper()
	d := &dev{cmd: command(t, "dev", "--dir", dir)}
	d.cmd.Stderr = &d.stderr
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for len(d.session) < 5 && lines.Scan() {
		line := lines.Text()
		if m := apiLine.FindStringSubmatch(line); m != nil {
			d.api = m[1]
		} else if m := databaseLine.FindStringSubmatch(line); m != nil {
			d.database = m[1]
		} else if m := curlLine.FindStringSubmatch(line); m != nil {
			d.session = append(d.session, request{m[1], m[2]})
		}
	}
	if len(d.session) < 5 || d.api == "" || d.database == "" {
		d.cmd.Process.Kill()
		t.Fatalf("it printed no session: %v, %v\n%s", lines.Err(), d.cmd.Wait(), d.stderr.String())
	}
	return d
}

// end sends a signal and checks that the command and its server end in order.
func (d *dev) end(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("after %v: %v\n%s", sig, err, d.stderr.String())
	}
	for _, url := range []string{d.api, d.database} {
		address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(url)
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			t.Errorf("after %v somebody still listens on %s", sig, address)
		}
	}
}

// send does what a line of the session does and returns the body of the answer.
func (r request) send(t *testing.T) (status int, body string) {
	t.Helper()
	method := http.MethodGet
	if r.body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(t.Context(), method, r.url, strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	if r.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// wants sends a request whose answer must have this status.
func (r request) wants(t *testing.T, status int) (body string) {
	t.Helper()
	got, body := r.send(t)
	if got != status {
		t.Fatalf("%s %s: status %d, want %d: %s", r.url, r.body, got, status, body)
	}
	return body
}

// needBinaries skips a test that must not download anything.
func needBinaries(t *testing.T) {
	t.Helper()
	if _, err := pgserver.Find(); err != nil {
		t.Skipf("NOT TESTED: %s starts PostgreSQL from binaries on this machine: %v", t.Name(), err)
	}
}

// devFolder returns a place for a data folder that the server's account can enter, which t.TempDir is not.
func devFolder(t *testing.T) string {
	t.Helper()
	parent, err := os.MkdirTemp("", "fastpubsub-dev-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(parent, 0o711); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(parent, "dev")
}

func TestDev(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	dir := devFolder(t)

	d := startDev(t, dir)
	for i, status := range []int{http.StatusCreated, http.StatusCreated, http.StatusNoContent} {
		d.session[i].wants(t, status)
	}
	var answer struct {
		Data []struct {
			ID      string
			Payload json.RawMessage
		}
	}
	consume := d.session[3]
	if err := json.Unmarshal([]byte(consume.wants(t, http.StatusOK)), &answer); err != nil {
		t.Fatal(err)
	}
	if len(answer.Data) != 1 || !strings.Contains(d.session[2].body, string(answer.Data[0].Payload)) {
		t.Fatalf("published %s, consumed %+v", d.session[2].body, answer.Data)
	}
	ack := d.session[4]
	ack.wants(t, http.StatusUnprocessableEntity) // it says ID
	ack.body = strings.Replace(ack.body, "ID", answer.Data[0].ID, 1)
	ack.wants(t, http.StatusNoContent)

	conn, err := pgx.Connect(t.Context(), d.database)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())

	t.Run("ErrTwice", func(t *testing.T) {
		wantFailure(t, command(t, "dev", "--dir", dir), 1, "is in use")
	})

	// The data outlive every kind of end, also the worst. Only Linux ends the server with a command that is killed.
	d.end(t, syscall.SIGINT)
	d = startDev(t, dir)
	d.session[0].wants(t, http.StatusConflict)
	if runtime.GOOS == "linux" {
		if err := d.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = d.cmd.Wait() // it was killed
		d = restartDev(t, dir)
		d.session[0].wants(t, http.StatusConflict)
	}
	d.end(t, syscall.SIGTERM)
}

// restartDev is startDev once the server of a command that was killed is gone.
func restartDev(t *testing.T, dir string) *dev {
	t.Helper()
	deadline := time.Now().Add(devTimeout)
	for {
		_, err := os.Stat(filepath.Join(dir, "data", "postmaster.pid"))
		if errors.Is(err, fs.ErrNotExist) {
			return startDev(t, dir)
		}
		if time.Now().After(deadline) {
			t.Fatal("the server outlived its command")
		}
		time.Sleep(20 * time.Millisecond) // between polls
	}
}

// wantFailure runs a command that must fail with this exit code and one line, or those of the settings, on stderr.
func wantFailure(t *testing.T, cmd *exec.Cmd, code int, text string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != code {
		t.Errorf("%v, want exit code %d", err, code)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout: %s", stdout.String())
	}
	var errorLines []string
	for line := range strings.Lines(stderr.String()) {
		if !strings.Contains(line, "level=INFO") {
			errorLines = append(errorLines, line)
		}
	}
	if len(errorLines) != 1 || !strings.Contains(errorLines[0], text) {
		t.Errorf("stderr must be one line with %q, it is:\n%s", text, stderr.String())
	}
}

func TestDevErrors(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	t.Run("ErrForeignFolder", func(t *testing.T) {
		t.Parallel()
		dir := devFolder(t)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		wantFailure(t, command(t, "dev", "--dir", dir), 1, "thesis.txt")
	})
	t.Run("ErrPortTaken", func(t *testing.T) {
		t.Parallel()
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		port := fmt.Sprint(taken.Addr().(*net.TCPAddr).Port)
		wantFailure(t, command(t, "dev", "--dir", devFolder(t), "--api-port", port), 1, "choose another port with --api-port")
		wantFailure(t, command(t, "dev", "--dir", devFolder(t), "--database-port", port), 1, "port "+port+" is not free")
	})
	t.Run("ErrSettings", func(t *testing.T) {
		t.Parallel()
		wantFailure(t, command(t, "dev", "--api-port", "http"), 2, "FASTPUBSUB_API_PORT: must be an integer")
		wantFailure(t, command(t, "dev", "--database-port", "65536"), 2, "--database-port: must be an integer")
	})
}

// TestDevDatabaseEnds takes PostgreSQL away from a running command, which has to say so.
func TestDevDatabaseEnds(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	dir := devFolder(t)
	d := startDev(t, dir)
	text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatal(err)
	}
	server, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	err = d.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		t.Errorf("%v, want exit code 1", err)
	}
	if !strings.Contains(d.stderr.String(), "the server exited") {
		t.Errorf("stderr: %s", d.stderr.String())
	}
}

func TestDevDir(t *testing.T) {
	dir := t.TempDir()
	if publicPath(dir) {
		t.Errorf("%s is public, it lies in a folder that is the user's alone", dir)
	}
	if !publicPath("/") {
		t.Error("/ is not public")
	}
	t.Chdir(dir)
	want := filepath.Join(dir, ".fastpubsub")
	if os.Geteuid() == 0 {
		want = rootDataDir
	}
	if got, err := devDir(); err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}

func TestGreet(t *testing.T) {
	t.Parallel()
	for listening, want := range map[string]string{
		"127.0.0.1:8000": "http://127.0.0.1:8000",
		"0.0.0.0:8000":   "http://127.0.0.1:8000",
		"[::]:8000":      "http://127.0.0.1:8000",
		"[::1]:8000":     "http://[::1]:8000",
	} {
		var out bytes.Buffer
		greet(&out, "d", "u", listening)
		if !strings.Contains(out.String(), want+"/topics") || strings.Contains(out.String(), "%!") {
			t.Errorf("listening on %s: %s", listening, out.String())
		}
	}
}
