package pgserver_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// ownerEnv makes the test binary start a server, print where it is, and wait to be killed.
const ownerEnv = "PGSERVER_TEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) == "" {
		os.Exit(m.Run())
	}
	s, err := pgserver.Start(context.Background(), pgserver.Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.DataDir())
	fmt.Println(s.URL())
	select {}
}

func needBinaries(t *testing.T) {
	t.Helper()
	if _, err := pgserver.Find(); errors.Is(err, pgserver.ErrNoBinaries) {
		t.Skip(err)
	}
}

// folder returns a place for a data folder that the server's account can reach: what lies above t.TempDir is private.
func folder(t *testing.T) string {
	t.Helper()
	parent, err := os.MkdirTemp("", "pgserver-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o711); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(parent, "dev")
}

func start(t *testing.T, opt pgserver.Options) *pgserver.Server {
	t.Helper()
	needBinaries(t)
	s, err := pgserver.Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// query runs sql, which returns one text.
func query(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var text string
	if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

// makeKept makes the table kept, which holds "yes".
func makeKept(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 'yes'::text AS t"); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 20 seconds: %s", what)
		case <-tick.C:
		}
	}
}

func canConnect(url string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return false
	}
	conn.Close(ctx)
	return true
}

func mustNotStart(t *testing.T, opt pgserver.Options, texts ...string) error {
	t.Helper()
	s, err := pgserver.Start(t.Context(), opt)
	if err == nil {
		s.Stop()
		t.Fatal("the server started")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not contain %q", err, text)
		}
	}
	return err
}

func TestTemporary(t *testing.T) {
	t.Parallel()
	s := start(t, pgserver.Options{Settings: map[string]string{"max_connections": "33", "application_name": "a 'b' c"}})

	const settings = `SELECT concat_ws(' ', current_setting('fsync'), current_setting('max_connections'),
		current_setting('listen_addresses'), current_setting('server_encoding'), current_setting('lc_messages'),
		current_setting('unix_socket_directories') = '', current_database(), current_user)`
	if got, want := query(t, s.URL(), settings), "off 33 127.0.0.1 UTF8 C t fastpubsub fastpubsub"; got != want {
		t.Errorf("settings are %q, want %q", got, want)
	}
	if canConnect(strings.Replace(s.URL(), "fastpubsub:", "fastpubsub:x", 1)) {
		t.Error("a wrong password is accepted")
	}
	if err := s.Err(); err != nil {
		t.Errorf("Err of a running server: %v", err)
	}

	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	<-s.Done()
	if err := s.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(s.DataDir())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	if err := s.Restart(t.Context()); err == nil {
		t.Error("Restart after Stop succeeded")
	}
}

func TestKeepsData(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	opt := pgserver.Options{Dir: dir, Durable: true}
	s := start(t, opt)
	makeKept(t, s.URL())
	if got := query(t, s.URL(), `SELECT current_setting('fsync')`); got != "on" {
		t.Errorf("fsync is %s", got)
	}

	t.Run("ErrInUse", func(t *testing.T) {
		err := mustNotStart(t, opt, fmt.Sprintf("port %d", s.Port()))
		if !errors.Is(err, pgserver.ErrInUse) {
			t.Errorf("not ErrInUse: %v", err)
		}
	})

	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"password", "server.log"} {
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode of %s is %v", file, info.Mode())
		}
	}
	s = start(t, opt)
	if got := query(t, s.URL(), `SELECT t FROM kept`); got != "yes" {
		t.Errorf("read %q", got)
	}
}

func TestRecoversHalfFinishedInitdb(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	s := start(t, pgserver.Options{Dir: dir})
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	// As if the first start had been killed before initdb was done.
	if err := os.Rename(s.DataDir(), s.DataDir()+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(s.DataDir()+".new", "PG_VERSION")); err != nil {
		t.Fatal(err)
	}
	s = start(t, pgserver.Options{Dir: dir})
	if !canConnect(s.URL()) {
		t.Error("cannot connect")
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	needBinaries(t)

	t.Run("ForeignFolder", func(t *testing.T) {
		dir := folder(t)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		precious := filepath.Join(dir, "precious")
		if err := os.WriteFile(precious, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		mustNotStart(t, pgserver.Options{Dir: dir}, dir, "precious")
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("the folder was changed: %v", entries)
		}
	})
	t.Run("OtherMajor", func(t *testing.T) {
		dir := folder(t)
		s := start(t, pgserver.Options{Dir: dir})
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.DataDir(), "PG_VERSION"), []byte("9\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		mustNotStart(t, pgserver.Options{Dir: dir, Bin: s.Bin()}, "holds data of PostgreSQL 9", s.Bin())
		mustNotStart(t, pgserver.Options{Dir: dir}, "holds data of PostgreSQL 9")
	})
	t.Run("DamagedData", func(t *testing.T) {
		dir := folder(t)
		s := start(t, pgserver.Options{Dir: dir})
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(s.DataDir(), "PG_VERSION")); err != nil {
			t.Fatal(err)
		}
		mustNotStart(t, pgserver.Options{Dir: dir}, "damaged")
		if _, err := os.Stat(filepath.Join(s.DataDir(), "base")); err != nil {
			t.Errorf("data were deleted: %v", err)
		}
	})
	t.Run("PortTaken", func(t *testing.T) {
		s := start(t, pgserver.Options{})
		mustNotStart(t, pgserver.Options{Port: s.Port()}, fmt.Sprintf("port %d is not free", s.Port()))
	})
	t.Run("BadSetting", func(t *testing.T) {
		mustNotStart(t, pgserver.Options{Settings: map[string]string{"no_such": "1"}}, "exited", `"no_such"`)
	})
	t.Run("Cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := pgserver.Start(ctx, pgserver.Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("not Canceled: %v", err)
		}
	})
	t.Run("PrivateParent", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root runs the server as another account")
		}
		parent := filepath.Dir(folder(t))
		if err := os.Chmod(parent, 0o700); err != nil {
			t.Fatal(err)
		}
		mustNotStart(t, pgserver.Options{Dir: filepath.Join(parent, "dev")}, "may not enter "+parent)
	})
}

func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	s := start(t, pgserver.Options{Dir: folder(t), Durable: true})
	makeKept(t, s.URL())
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	backend := int(conn.PgConn().PID())

	for range 3 {
		port, done := s.Port(), s.Done()
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		<-done
		if err := s.Err(); err != nil {
			t.Errorf("Err after Kill: %v", err)
		}
		if err := conn.Ping(t.Context()); err == nil {
			t.Error("a connection survived")
		}
		eventually(t, "the backend is gone", func() bool { return syscall.Kill(backend, 0) != nil || isZombie(backend) })
		if _, err := os.Stat(filepath.Join(s.DataDir(), "postmaster.pid")); err != nil {
			t.Errorf("an orderly shutdown: %v", err)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.Port() != port {
			t.Errorf("port was %d, is %d", port, s.Port())
		}
		if got := query(t, s.URL(), `SELECT t FROM kept`); got != "yes" {
			t.Errorf("read %q", got)
		}
	}
	if err := s.Restart(t.Context()); err != nil { // a running one
		t.Fatal(err)
	}
	if !canConnect(s.URL()) {
		t.Error("cannot connect after Restart")
	}
}

func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && bytes.Contains(stat, []byte(") Z "))
}

// TestPostmasterKilled kills the postmaster alone, while a backend is too busy to notice: the next postmaster has to wait for that.
func TestPostmasterKilled(t *testing.T) {
	t.Parallel()
	s := start(t, pgserver.Options{})
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		_, _ = conn.Exec(t.Context(), `SELECT count(*) FROM (SELECT generate_series(1, 20000000)) n`)
	}()
	eventually(t, "the backend is busy", func() bool {
		return query(t, s.URL(), `SELECT count(*)::text FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series%'`) == "2" // this one too
	})
	signalPostmaster(t, s, syscall.SIGKILL)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-busy
}

// signalPostmaster sends a signal to the postmaster alone, and waits until it has ended.
func signalPostmaster(t *testing.T, s *pgserver.Server, sig syscall.Signal) {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(s.DataDir(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(pid), &n); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, sig); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
}

func TestDiesByItself(t *testing.T) {
	t.Parallel()
	s := start(t, pgserver.Options{})
	signalPostmaster(t, s, syscall.SIGTERM)
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "exit status 0") ||
		!strings.Contains(err.Error(), "smart shutdown") {
		t.Errorf("Err is %v", err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Err(); err != nil {
		t.Errorf("Err after Restart: %v", err)
	}
}

// TestOwnerKilled kills the process that owns a server: the server goes with it, and the next to start one deletes
// the folder.
func TestOwnerKilled(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), ownerEnv+"=1")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	data := lines.Text()
	lines.Scan()
	url := lines.Text()
	if !canConnect(url) {
		t.Errorf("cannot connect to %s: %s", url, data)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	eventually(t, "the server is gone", func() bool { return !canConnect(url) })
	eventually(t, "it removed its postmaster.pid", func() bool {
		_, err := os.Stat(filepath.Join(data, "postmaster.pid"))
		return err != nil
	})

	s := start(t, pgserver.Options{})
	if _, err := os.Stat(filepath.Dir(data)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	if _, err := os.Stat(s.DataDir()); err != nil {
		t.Error(err)
	}
}
