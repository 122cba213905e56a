package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// eventually calls f until it returns want.
func eventually(t *testing.T, want string, f func() string) {
	t.Helper()
	got := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) { // between polls
		if got = f(); got == want {
			return
		}
	}
	t.Fatalf("got %s, want %s", got, want)
}

// The server starts without a database and before the migration, says so, and goes on when they are there.
func TestServerRecovers(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	schema := db.Schema[:min(len(db.Schema), 58)] + "_new"
	t.Cleanup(func() {
		if _, err := db.Pool.Exec(context.Background(), "DROP SCHEMA IF EXISTS "+schema+" CASCADE"); err != nil {
			t.Error(err)
		}
	})
	config, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	var reachable sync.Mutex // held while it is not
	reachable.Lock()
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if !reachable.TryLock() {
			return nil, syscall.ECONNREFUSED
		}
		reachable.Unlock()
		return dial(ctx, network, address)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var log syncBuffer
	url, stop := startWith(t, pool, apiSettings{schema: schema, maintenance: true}, &log)
	get := func(path string) func() string {
		return func() string {
			answer, err := get(t.Context(), url+path)
			if err != nil {
				return err.Error()
			}
			return answer
		}
	}
	eventually(t, `503 {"detail":"database is down"}`, get("/readiness"))
	eventually(t, `200 {"status":"alive"}`, get("/liveness"))
	reachable.Unlock()
	eventually(t, `503 {"detail":"database schema is out of date: run db-migrate"}`, get("/readiness"))
	if code, _, stderr := execute(t.Context(), "db-migrate", "--database-url="+db.URL, "--database-schema="+schema); code != 0 {
		t.Fatal(stderr)
	}
	eventually(t, `200 {"status":"ready"}`, get("/readiness"))
	eventually(t, `200 {"data":[]}`, get("/topics"))
	eventually(t, "true", func() string {
		return map[bool]string{true: "true"}[strings.Contains(log.String(), "msg=ready")]
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "not ready"); n < 1 || n > 2 {
		t.Errorf("it said %d times that it was not ready:\n%s", n, &log)
	}
}

// A serverProcess is a server with signals of its own.
type serverProcess struct {
	cmd    *exec.Cmd
	stderr syncBuffer
	url    string
}

// startBusyServer starts a server with a request that cannot end while the test runs.
func startBusyServer(t *testing.T) *serverProcess {
	t.Helper()
	db := storetest.New(t)
	s := &serverProcess{cmd: command(t, "server", "--database-url="+db.URL, "--database-schema="+db.Schema, "--api-host=127.0.0.1")}
	s.cmd.Stderr = &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := regexp.MustCompile(`address=(\S+)`)
	eventually(t, "true", func() string {
		m := address.FindStringSubmatch(s.stderr.String())
		if m == nil {
			return s.stderr.String()
		}
		s.url = "http://" + m[1]
		answer, err := get(t.Context(), s.url+"/readiness")
		return map[bool]string{true: "true"}[err == nil && strings.HasPrefix(answer, "200")]
	})
	holder, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { holder.Rollback(context.Background()) })
	if _, err := holder.Exec(t.Context(), db.SQL(`LOCK TABLE {schema}.topics IN ACCESS EXCLUSIVE MODE`)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if answer, err := get(context.Background(), s.url+"/topics"); err == nil {
			t.Errorf("the request was answered: %s", answer)
		}
	}()
	t.Cleanup(func() { <-ended })
	eventually(t, "1", func() string {
		var n string
		err := db.Pool.QueryRow(t.Context(), db.SQL(`
SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = '{schema}.topics'::regclass`)).Scan(&n)
		return errors.Join(err, errors.New(n)).Error()
	})
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "true", func() string {
		return map[bool]string{true: "true"}[strings.Contains(s.stderr.String(), "message=stopping")]
	})
	return s
}

// The second signal does not wait for the request.
func TestSecondSignalKills(t *testing.T) {
	t.Parallel()
	s := startBusyServer(t)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := s.cmd.Wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("%v, want the signal; %s", err, &s.stderr)
	}
}

// A request that does not end is cut off.
func TestShutdownIsBounded(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes as long as a shutdown may")
	}
	s := startBusyServer(t)
	err := s.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(s.stderr.String(), "were cut off") {
		t.Errorf("%v, want exit code 1; %s", err, &s.stderr)
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	_, db, _ := failing(t)
	url, _ := start(t, db.Pool, db.Schema, io.Discard)
	bad, _ := start(t, db.Pool, "nowhere", io.Discard)
	for _, test := range []struct {
		url  string
		flag string
		code int
		want string
	}{
		{url, "", 0, ""},
		{bad, "", 1, `fastpubsub: healthcheck: 503 {"detail":"database schema is out of date: run db-migrate"}` + "\n"},
		{bad, "--live", 0, ""},
		{"http://127.0.0.1:1", "", 1, "connection refused\n"},
	} {
		_, port, err := net.SplitHostPort(strings.TrimPrefix(test.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"127.0.0.1", "0.0.0.0"} {
			args := strings.Fields("healthcheck --api-host=" + host + " --api-port=" + port + " " + test.flag)
			code, stdout, stderr := execute(t.Context(), args...)
			if code != test.code || stdout != "" || !strings.HasSuffix(stderr, test.want) || (stderr == "") != (code == 0) {
				t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
			}
		}
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	handler := withProfiles(http.NotFoundHandler())
	for _, test := range []struct {
		path, remote, header string
		status               int
	}{
		{"/debug/pprof/goroutine?debug=1", "127.0.0.1:1", "", 200},
		{"/debug/pprof/goroutine?debug=1", "[::1]:1", "", 200},
		{"/debug/pprof/goroutine?debug=1", "10.0.0.1:1", "", 404},
		{"/debug/pprof/goroutine?debug=1", "127.0.0.1:1", "X-Forwarded-For", 404},
		{"/debug/pprof/goroutine?debug=1", "127.0.0.1:1", "Forwarded", 404},
		{"/debug/pprof/cmdline", "127.0.0.1:1", "", 404},
		{"/topics", "127.0.0.1:1", "", 404},
	} {
		r := httptest.NewRequest(http.MethodGet, test.path, nil)
		r.RemoteAddr = test.remote
		if test.header != "" {
			r.Header.Set(test.header, "10.0.0.1")
		}
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, r)
		if answer.Code != test.status {
			t.Errorf("%+v: %d", test, answer.Code)
		}
	}
}

// Statements are logged without what is in them, in every query mode, and those of batches too.
func TestDatabaseEcho(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	db := storetest.New(t)
	config, err := pgxpool.ParseConfig(db.URL + "&default_query_exec_mode=simple_protocol")
	if err != nil {
		config, err = pgxpool.ParseConfig(db.URL + "?default_query_exec_mode=simple_protocol")
	}
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, "--database-echo=yes", "--database-pool-pre-ping=off")
	var bad badSettings
	c.apply(&bad, config, slog.New(slog.NewTextHandler(&out, nil)))
	if err := bad.err(); err != nil {
		t.Fatal(err)
	}
	if config.ShouldPing == nil || config.ShouldPing(t.Context(), pgxpool.ShouldPingParams{IdleDuration: time.Hour}) {
		t.Error("an idle connection is tried")
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var got string
	if err := pool.QueryRow(t.Context(), "SELECT $1::text\n  AS given", "secret").Scan(&got); err != nil || got != "secret" {
		t.Fatal(got, err)
	}
	if want := `msg=statement sql="SELECT $1::text AS given"`; !strings.Contains(out.String(), want) || strings.Contains(out.String(), "secret") {
		t.Errorf("%s, want %s", out.String(), want)
	}
	c = parse(t)
	config.ShouldPing, config.ConnConfig.Tracer = nil, nil
	if c.apply(&bad, config, nil); config.ShouldPing != nil || config.ConnConfig.Tracer != nil {
		t.Error("there is something to log or to leave by default")
	}
}

// What other drivers take is no error, and what nobody knows stays one for the server to find.
func TestURLsOfOtherDrivers(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgresql+psycopg://u:p%40s@h:1/d":                                     "postgres://u:p%40s@h:1/d",
		"postgresql+asyncpg://u@h/d?ssl=require&prepared_statement_cache_size=0": "postgres://u@h/d?sslmode=require",
		"postgresql+psycopg2://u@h/d?ssl=true&sslmode=verify-full":               "postgres://u@h/d?sslmode=verify-full",
		"postgres://u@h/d?keepalives=1&keepalives_idle=30&gssencmode=disable":    "postgres://u@h/d",
		"postgresql://u@h/d?options=-c%20search_path%3Dx&application_name=a+b":   "postgres://u@h/d?application_name=a%20b&options=-c%20search_path%3Dx",
		"postgres://u@/d?host=/var/run/postgresql&default_query_exec_mode=exec":  "postgres://u@/d?default_query_exec_mode=exec&host=%2Fvar%2Frun%2Fpostgresql",
		"postgresql+psycopg://u@h/d?prepare_threshold=0&sslrootcert=/etc/ca.crt": "postgres://u@h/d?sslrootcert=%2Fetc%2Fca.crt",
	} {
		if got, ok := ourURL(url); !ok || got != want {
			t.Errorf("%s became %s, %t, want %s", url, got, ok, want)
		}
	}
	for _, url := range []string{"mysql://h/d", "sqlite:///d", "h/d", "", "host=h", "postgresqlx://h/d", "postgres://h/d?a=%zz"} {
		if got, ok := ourURL(url); ok {
			t.Errorf("%s became %s", url, got)
		}
	}
}

func TestServerSettings(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := execute(t.Context(), "server", "--database-url="+nowhere, "--database-echo=maybe", "--database-pool-pre-ping=2",
		"--api-debug=", "--api-num-workers=0", "--log-formatter=%(mesage)s")
	want := `fastpubsub: FASTPUBSUB_API_DEBUG: must be true or false, not ""
fastpubsub: FASTPUBSUB_API_NUM_WORKERS: must be an integer from 1 to 10000, not "0"
fastpubsub: FASTPUBSUB_LOG_FORMATTER: there is no field %(mesage)
fastpubsub: FASTPUBSUB_DATABASE_POOL_PRE_PING: must be true or false, not "2"
fastpubsub: FASTPUBSUB_DATABASE_ECHO: must be true or false, not "maybe"
`
	if diff := cmp.Diff(want, stderr); code != 2 || stdout != "" || diff != "" {
		t.Errorf("exit code %d, stdout %q, stderr (-want +got):\n%s", code, stdout, diff)
	}
	var bad badSettings
	c := parse(t, "--api-num-workers=3", "--api-debug=on")
	if n := c.workers(&bad); n != 3 || !c.settings(&bad).debug || !c.settings(&bad).api.Debug {
		t.Errorf("%d workers", n)
	}
	if n := parse(t).workers(&bad); n != 0 || bad != nil {
		t.Errorf("%d workers by default, %v", n, bad)
	}
}

// API_NUM_WORKERS is about the whole process, so a process is looked at.
func TestNumWorkers(t *testing.T) {
	t.Parallel()
	if runtime.GOMAXPROCS(0) == 1 {
		t.Skip("there is one core")
	}
	cmd := command(t, "server", "--database-url="+nowhere, "--api-num-workers=1", "--api-host=127.0.0.1", "--log-level=debug")
	var stderr syncBuffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "true", func() string {
		return map[bool]string{true: "true"}[strings.Contains(stderr.String(), " cores=1")]
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, &stderr)
	}
}
