package storetest_test

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// withoutMain makes the test binary run as if TestMain did not use storetest.Main.
const withoutMain = "STORETEST_WITHOUT_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(withoutMain) != "" {
		os.Exit(m.Run())
	}
	storetest.Main(m)
}

func scan[T any](t *testing.T, db *storetest.DB, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := db.Pool.QueryRow(t.Context(), db.SQL(sql), args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func TestNew(t *testing.T) {
	t.Parallel()
	var name string
	t.Run("A very long name, with Capitals, ünïcode and \"quotes\", that no identifier could hold", func(t *testing.T) {
		db := storetest.New(t)
		name = db.Schema
		if !regexp.MustCompile(`^t_testnew_a_very_long_name[a-z0-9_]{0,37}$`).MatchString(name) {
			t.Errorf("the schema is named %q", name)
		}
		if n := scan[int](t, db, "SELECT count(*) FROM {schema}.log_state"); n != 1 {
			t.Errorf("log_state has %d rows, want 1", n)
		}
		if path := scan[string](t, db, "SELECT current_setting('search_path')"); path != "" {
			t.Errorf("search_path is %q", path)
		}
		if _, err := db.Pool.Exec(t.Context(), "SELECT FROM log_state"); err == nil {
			t.Error("a table is found without its schema")
		}
	})
	db := storetest.New(t)
	const exists = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
	if scan[bool](t, db, exists, name) {
		t.Errorf("schema %q is still there", name)
	}
	if !scan[bool](t, db, exists, db.Schema) {
		t.Errorf("schema %q is missing", db.Schema)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	db := storetest.New(t, func(c *pgxpool.Config) {
		c.MaxConns = 17
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	})
	if n := db.Pool.Config().MaxConns; n != 17 {
		t.Errorf("MaxConns is %d", n)
	}
	if mode := db.Pool.Config().ConnConfig.DefaultQueryExecMode; mode != pgx.QueryExecModeSimpleProtocol {
		t.Errorf("query mode is %v", mode)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	db, err := storetest.Open(t.Context(), "Example")
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Pool.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// TestCheckInvariants changes Invariants, so it does not run in parallel.
func TestCheckInvariants(t *testing.T) {
	db := storetest.New(t)
	old := storetest.Invariants
	defer func() { storetest.Invariants = old }()

	storetest.Invariants = []storetest.Invariant{
		{Name: "holds", Query: "SELECT 1 FROM {schema}.log_state WHERE false;\n"},
	}
	if err := db.CheckInvariants(t.Context()); err != nil {
		t.Error(err)
	}
	storetest.Invariants = append(storetest.Invariants,
		storetest.Invariant{Name: "is violated", Query: "SELECT 1 AS a, ARRAY[xid8 '7'] AS b FROM {schema}.log_state"},
		storetest.Invariant{Name: "is wrong", Query: "SELECT"},
	)
	err := db.CheckInvariants(t.Context())
	if err == nil {
		t.Fatal("no error")
	}
	for _, text := range []string{`"is violated": violated by (1,{7})`, `"is wrong"`} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not contain %q", err, text)
		}
	}
	if strings.Contains(err.Error(), "holds") {
		t.Errorf("error %q names what holds", err)
	}
}

func TestNewServer(t *testing.T) {
	t.Parallel()
	srv, db := storetest.NewServer(t, map[string]string{"max_connections": "23"})
	settings := scan[string](t, db, "SELECT current_setting('fsync') || ' ' || current_setting('max_connections')")
	if settings != "on 23" {
		t.Errorf("settings are %q", settings)
	}
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := srv.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
	if n := scan[int](t, db, "SELECT count(*) FROM {schema}.log_state"); n != 1 {
		t.Errorf("log_state has %d rows, want 1", n)
	}
}

func TestNewServerStaysDead(t *testing.T) {
	t.Parallel()
	srv, _ := storetest.NewServer(t, nil)
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
}

// rerun runs one test of this binary in a process with other variables, which only a process of its own can have.
func rerun(t *testing.T, test string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), env...)
	out, _ := cmd.CombinedOutput()
	return string(out)
}

func TestWithoutMain(t *testing.T) {
	t.Parallel()
	out := rerun(t, "TestOptions", withoutMain+"=1", "FASTPUBSUB_TEST_DATABASE_URL=")
	if !strings.Contains(out, "--- FAIL: TestOptions") || !strings.Contains(out, "{ storetest.Main(m) }") {
		t.Errorf("the test said\n%s", out)
	}
}

// TestServers runs a test against each kind of server but the one that the others here use.
func TestServers(t *testing.T) {
	t.Parallel()

	t.Run("DatabaseURL", func(t *testing.T) {
		t.Parallel()
		db := storetest.New(t)
		out := rerun(t, "TestOpen", "FASTPUBSUB_TEST_DATABASE_URL="+db.URL)
		if !strings.Contains(out, "--- PASS: TestOpen") {
			t.Errorf("the test said\n%s", out)
		}
		conn, err := pgx.Connect(t.Context(), db.URL)
		if err != nil {
			t.Fatalf("the server was stopped: %v", err)
		}
		conn.Close(context.WithoutCancel(t.Context()))
	})
	t.Run("DatabaseAway", func(t *testing.T) {
		t.Parallel()
		out := rerun(t, "TestOpen", "FASTPUBSUB_TEST_DATABASE_URL=postgres://127.0.0.1:1/none")
		if !strings.Contains(out, "--- FAIL: TestOpen") || !strings.Contains(out, "connect") {
			t.Errorf("the test said\n%s", out)
		}
	})
	t.Run("WrongBin", func(t *testing.T) {
		t.Parallel()
		out := rerun(t, "TestOpen", "FASTPUBSUB_TEST_DATABASE_URL=", "FASTPUBSUB_POSTGRES_BIN="+t.TempDir())
		if !strings.Contains(out, "--- FAIL: TestOpen") || !strings.Contains(out, "no postgres there") {
			t.Errorf("the test said\n%s", out)
		}
	})
}
