package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// nowhere is the address of a database that refuses connections.
const nowhere = "postgres://u:secret@127.0.0.1:1/d"

// execute runs the command and returns what it wrote, too.
func execute(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(&process{ctx, strings.NewReader(""), &out, &err}, args)
	return code, out.String(), err.String()
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	const badURL = "must be a URL like postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters %-encoded"
	for _, test := range []struct {
		reason string
		args   []string
		code   int
		stderr []string // lines; nil for any
	}{
		{"version", []string{"version"}, 0, []string{}},
		{"help", []string{"--help"}, 0, []string{}},
		{"help of a command", []string{"server", "--help"}, 0, []string{}},
		{"no command", nil, 2, nil},
		{"unknown command", []string{"serve"}, 2, nil},
		{"unknown flag", []string{"server", "--zzz"}, 2, []string{"fastpubsub: unknown flag --zzz; see fastpubsub --help"}},
		{"a URL as argument", []string{"server", nowhere}, 2,
			[]string{"fastpubsub: unexpected argument: a database URL belongs in FASTPUBSUB_DATABASE_URL; see fastpubsub --help"}},
		{"no database", []string{"db-migrate"}, 2, []string{"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set"}},
		{"scheme", []string{"db-migrate", "--database-url=mysql://u:secret@h/d"}, 2, []string{"fastpubsub: FASTPUBSUB_DATABASE_URL: " + badURL}},
		{"keywords", []string{"db-migrate", "--database-url=host=h password=secret"}, 2, []string{"fastpubsub: FASTPUBSUB_DATABASE_URL: " + badURL}},
		{"not a URL", []string{"db-migrate", "--database-url=postgres://u:secret%@h/d"}, 2, []string{"fastpubsub: FASTPUBSUB_DATABASE_URL: " + badURL}},
		{"direct URL", []string{"db-migrate", "--migrate-database-url=postgres://u:secret@h:x/d"}, 2, []string{"fastpubsub: FASTPUBSUB_MIGRATE_DATABASE_URL: " + badURL}},
		{"all that is wrong", []string{"server", "--database-schema=pg_x", "--database-pool-size=0", "--database-max-overflow=-1", "--api-port=65536",
			"--api-max-body-bytes=16M", "--publish-max-messages=10001", "--ack-max-ids=", "--subscription-max-attempts=0", "--subscription-backoff-min-seconds=7",
			"--subscription-backoff-max-seconds=6", "--cleanup-stuck-messages-lock-timeout-seconds=43201", "--log-level=loud"}, 2, []string{
			"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set",
			`fastpubsub: FASTPUBSUB_DATABASE_POOL_SIZE: must be an integer from 1 to 10000, not "0"`,
			`fastpubsub: FASTPUBSUB_DATABASE_MAX_OVERFLOW: must be an integer from 0 to 10000, not "-1"`,
			`fastpubsub: FASTPUBSUB_API_PORT: must be an integer from 0 to 65535, not "65536"`,
			`fastpubsub: FASTPUBSUB_API_MAX_BODY_BYTES: must be an integer from 1 to 67108864, not "16M"`,
			`fastpubsub: FASTPUBSUB_PUBLISH_MAX_MESSAGES: must be an integer from 1 to 10000, not "10001"`,
			`fastpubsub: FASTPUBSUB_ACK_MAX_IDS: must be an integer from 1 to 10000, not ""`,
			`fastpubsub: FASTPUBSUB_DATABASE_SCHEMA: "pg_x": schema name must match ^[a-z_][a-z0-9_]{0,62}$ and not begin with pg_`,
			`fastpubsub: FASTPUBSUB_SUBSCRIPTION_MAX_ATTEMPTS: must be an integer from 1 to 2147483647, not "0"`,
			`fastpubsub: FASTPUBSUB_SUBSCRIPTION_BACKOFF_MAX_SECONDS: must be at least FASTPUBSUB_SUBSCRIPTION_BACKOFF_MIN_SECONDS, which is 7`,
			`fastpubsub: FASTPUBSUB_CLEANUP_STUCK_MESSAGES_LOCK_TIMEOUT_SECONDS: must be an integer from 1 to 43200, not "43201"`,
			`fastpubsub: FASTPUBSUB_LOG_LEVEL: must be debug, info, warning or error, not "loud"`,
		}},
		{"cleanup without a database", []string{"cleanup_stuck_messages"}, 2, []string{"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set"}},
		{"cleanup, database away", []string{"cleanup-stuck-messages", "--database-url=" + nowhere}, 1, nil},
		{"dead letters, all that is wrong", []string{"dlq", "list", "s", "--limit=1001", "--offset=-1"}, 2, []string{
			`fastpubsub: --offset: must be an integer from 0 to 1000000000, not "-1"`,
			`fastpubsub: --limit: must be an integer from 1 to 1000, not "1001"`,
			"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set",
		}},
		{"reprocess what", []string{"dlq", "reprocess", "s", "--database-url=" + nowhere}, 2, []string{"fastpubsub: ID: must be given, or --all, and not both"}},
		{"purge all and one", []string{"dlq", "purge", "s", "550e8400-e29b-81d4-a716-446655440000", "--all", "--database-url=" + nowhere}, 2,
			[]string{"fastpubsub: ID: must be given, or --all, and not both"}},
		{"purge no id", []string{"dlq", "purge", "s", "550e8400", "--database-url=" + nowhere}, 2, []string{`fastpubsub: ID: must be a UUID, not "550e8400"`}},
		{"all that is wrong with ids", []string{"dlq", "reprocess", "s", "a", "550e8400-e29b-81d4-a716-446655440000", "b", "--all"}, 2, []string{
			"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set",
			"fastpubsub: ID: must be given, or --all, and not both",
			`fastpubsub: ID: must be a UUID, not "a"`,
			`fastpubsub: ID: must be a UUID, not "b"`,
		}},
		{"a URL as subscription", []string{"dlq", "list", nowhere}, 2, []string{
			"fastpubsub: SUBSCRIPTION: must be an id; a database URL belongs in FASTPUBSUB_DATABASE_URL",
			"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set",
		}},
		{"a URL as id", []string{"dlq", "purge", "s", nowhere, "--database-url=" + nowhere}, 2,
			[]string{"fastpubsub: ID: must be a UUID; a database URL belongs in FASTPUBSUB_DATABASE_URL"}},
		{"dead letters, database away", []string{"dlq", "list", "s", "--database-url=" + nowhere}, 1, nil},
		{"which dead letters command", []string{"dlq"}, 2, nil},
		{"help of dead letters", []string{"dlq", "purge", "--help"}, 0, []string{}},
		{"purge from nothing", []string{"dlq", "purge"}, 2, nil},
		{"doctor, all that is wrong", []string{"doctor", "--listen-database-url=h", "--migrate-database-url=mysql://u:secret@h/d", "--database-pool-size=0"}, 2, []string{
			"fastpubsub: FASTPUBSUB_DATABASE_URL: must be set",
			`fastpubsub: FASTPUBSUB_DATABASE_POOL_SIZE: must be an integer from 1 to 10000, not "0"`,
			"fastpubsub: FASTPUBSUB_MIGRATE_DATABASE_URL: " + badURL,
			"fastpubsub: FASTPUBSUB_LISTEN_DATABASE_URL: " + badURL,
		}},
		{"help of doctor", []string{"doctor", "--help"}, 0, []string{}},
		{"bench, all that is wrong", []string{"bench", "--rounds=1001", "--plots=x", "--database-url=mysql://u:secret@h/d"}, 2, []string{
			"fastpubsub: FASTPUBSUB_DATABASE_URL: " + badURL,
			"fastpubsub: rounds must be 1 to 1000, not 1001",
			"fastpubsub: --plots and --write are for workloads that begin with growth: --growth measures all of them",
		}},
		{"database away", []string{"db-migrate", "--database-url=" + nowhere}, 1, nil},
	} {
		t.Run(test.reason, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := execute(t.Context(), test.args...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if (stdout != "") != (test.code == 0) {
				t.Errorf("stdout: %q", stdout)
			}
			lines := slices.Collect(strings.Lines(stderr))
			for i, line := range lines {
				lines[i] = strings.TrimSuffix(line, "\n")
			}
			if test.stderr == nil && len(lines) != 1 {
				t.Errorf("stderr has %d lines, want 1: %s", len(lines), stderr)
			} else if diff := cmp.Diff(test.stderr, append([]string{}, lines...)); test.stderr != nil && diff != "" {
				t.Errorf("stderr (-want +got):\n%s", diff)
			}
			if strings.Contains(stderr, "secret") {
				t.Errorf("stderr has the password: %s", stderr)
			}
		})
	}
}

// parse returns the server's flags.
func parse(t *testing.T, args ...string) *serverCommand {
	t.Helper()
	var c commands
	parser, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(append([]string{"server"}, args...)); err != nil {
		t.Fatal(err)
	}
	return &c.Server
}

func TestSettings(t *testing.T) {
	t.Parallel()
	c := parse(t, "--database-url=postgresql+psycopg://u:p%40@h:6543/d?connect_timeout=3&application_name=mine", "--api-port=80", "--api-host=::1",
		"--database-pool-size=7", "--database-max-overflow=0")
	var bad badSettings
	pool, settings, defaults := c.pool(&bad, c.poolFlags), c.settings(&bad), c.subscriptionDefaults(&bad)
	if err := bad.err(); err != nil {
		t.Fatal(err)
	}
	got := []any{pool.ConnConfig.Host, pool.ConnConfig.Port, pool.ConnConfig.User, pool.ConnConfig.Password, pool.ConnConfig.Database,
		pool.ConnConfig.ConnectTimeout, pool.ConnConfig.RuntimeParams["application_name"], pool.MaxConns}
	want := []any{"h", uint16(6543), "u", "p@", "d", 3 * time.Second, "mine", int32(7)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pool (-want +got):\n%s", diff)
	}
	if want := "[::1]:80"; settings.address != want {
		t.Errorf("address %q, want %q", settings.address, want)
	}
	if diff := cmp.Diff(httpapi.Config{MaxBodyBytes: 16 << 20, PublishMaxMessages: 10_000, AckMaxIDs: 1_000}, settings.api); diff != "" {
		t.Errorf("api (-want +got):\n%s", diff)
	}
	wantDefaults := fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 5, BackoffMin: 5 * time.Second, BackoffMax: 300 * time.Second, AckDeadline: time.Minute}
	if diff := cmp.Diff(wantDefaults, defaults); diff != "" {
		t.Errorf("defaults of subscriptions (-want +got):\n%s", diff)
	}
}

func TestDefaultSettings(t *testing.T) {
	t.Parallel()
	c := parse(t, "--database-url=postgres://h/d")
	var bad badSettings
	pool, settings := c.pool(&bad, c.poolFlags), c.settings(&bad)
	got := []any{pool.ConnConfig.ConnectTimeout, pool.ConnConfig.RuntimeParams["application_name"], pool.MaxConns, settings.address, c.schema(&bad)}
	want := []any{connectTimeout, "fastpubsub", int32(15), "0.0.0.0:8000", "fastpubsub"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := bad.err(); err != nil {
		t.Error(err)
	}
}

// Each setting of these commands has the variable of the same name; one set to nothing counts as unset.
func TestEnvironment(t *testing.T) {
	var c commands
	parser, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Children {
		if !slices.Contains([]string{"server", "db-migrate", "cleanup_stuck_messages", "doctor"}, command.Name) {
			continue
		}
		for _, flag := range command.Flags {
			if flag.Name == "json" { // how to print is no setting
				continue
			}
			want := "FASTPUBSUB_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
			if !slices.Equal(flag.Envs, []string{want}) {
				t.Errorf("--%s is %v, want %s", flag.Name, flag.Envs, want)
			}
		}
	}
	t.Setenv("FASTPUBSUB_API_HOST", "")
	t.Setenv("FASTPUBSUB_API_PORT", "9000")
	unsetEmpty()
	if c := parse(t); c.APIHost != "0.0.0.0" || c.APIPort != "9000" {
		t.Errorf("host %q, port %q", c.APIHost, c.APIPort)
	}
	if c := parse(t, "--api-port=9001"); c.APIPort != "9001" {
		t.Errorf("port %q in spite of the flag", c.APIPort)
	}
	if _, ok := os.LookupEnv("FASTPUBSUB_API_HOST"); ok {
		t.Error("FASTPUBSUB_API_HOST is still set")
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	schema := db.Schema[:min(len(db.Schema), 58)] + "_new"
	t.Cleanup(func() {
		if _, err := db.Pool.Exec(context.Background(), "DROP SCHEMA "+schema+" CASCADE"); err != nil {
			t.Error(err)
		}
	})
	for _, test := range []struct{ command, message, from string }{
		{"db-migrate", `message=schema migrated`, "from_version=0"},
		{"db_migrate", `message=schema is up to date`, fmt.Sprintf("from_version=%d", store.Version)},
	} {
		code, stdout, stderr := execute(t.Context(), test.command, "--database-url="+nowhere, "--migrate-database-url="+db.URL, "--database-schema="+schema)
		if code != 0 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, test.message) || !strings.Contains(stderr, test.from) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", test.command, code, stdout, stderr)
		}
	}
}

// A syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu  sync.Mutex // protects buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start serves until stop, which returns what serve does.
func start(t *testing.T, pool *pgxpool.Pool, schema string, log io.Writer) (url string, stop func() error) {
	t.Helper()
	return startWith(t, pool, apiSettings{schema: schema}, log)
}

func startWith(t *testing.T, pool *pgxpool.Pool, settings apiSettings, log io.Writer) (url string, stop func() error) {
	t.Helper()
	settings.address = "127.0.0.1:0"
	ctx, cancel := context.WithCancel(t.Context())
	addresses, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- serve(ctx, pool, settings, slog.New(slog.NewTextHandler(log, nil)), func(a string) { addresses <- a })
	}()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { stop() })
	select {
	case address := <-addresses:
		return "http://" + address, stop
	case err := <-ended:
		t.Fatal(err)
		panic("unreachable")
	}
}

// get returns the status and the body of an answer.
func get(ctx context.Context, url string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return fmt.Sprint(answer.StatusCode, " ", string(text)), err
}

func TestServeWithoutDatabase(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), nowhere)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var log syncBuffer
	url, stop := start(t, pool, "fastpubsub", &log)
	for path, want := range map[string]string{
		"/liveness":  `200 {"status":"alive"}`,
		"/readiness": `503 {"detail":"database is down"}`,
		"/topics":    `503 {"detail":"database is down"}`,
	} {
		if got, err := get(t.Context(), url+path); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", path, got, err, want)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"msg=listening address=127.0.0.1:", "msg=stopping", "msg=stopped"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q: %s", want, &log)
		}
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("log has the password: %s", &log)
	}
}

// subscribed returns a schema with a subscription s, and its broker.
func subscribed(t *testing.T, settings fastpubsub.SubscriptionSettings) (*fastpubsub.Broker, *storetest.DB) {
	t.Helper()
	db := storetest.New(t)
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broker.CreateTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	_, err = broker.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: "s", TopicID: "t", SubscriptionSettings: settings})
	if err != nil {
		t.Fatal(err)
	}
	return broker, db
}

// Stopping does not wait for a consumer's 30 seconds, and the consumer gets an answer.
func TestStopDuringLongPoll(t *testing.T) {
	t.Parallel()
	_, db := subscribed(t, fastpubsub.SubscriptionSettings{})
	url, stop := start(t, db.Pool, db.Schema, io.Discard)
	answers := make(chan string, 1)
	go func() {
		answer, err := get(t.Context(), url+"/subscriptions/s/messages?consumer_id=w&wait_seconds=30")
		if err != nil {
			answer = err.Error()
		}
		answers <- answer
	}()
	const waiting = `http_requests_in_progress{method="GET",path="/subscriptions/{id}/messages"} 1`
	for arrived := false; !arrived; {
		select {
		case answer := <-answers:
			t.Fatalf("answer before the end: %s", answer)
		case <-time.After(time.Millisecond):
		}
		metrics, err := get(t.Context(), url+"/metrics")
		if err != nil {
			t.Fatal(err)
		}
		arrived = strings.Contains(metrics, waiting)
	}
	before := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(before); took > shutdownTimeout {
		t.Errorf("stopping took %v", took)
	}
	if got, want := <-answers, `200 {"data":[]}`; got != want {
		t.Errorf("answer: %s, want %s", got, want)
	}
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	code, _, stderr := execute(t.Context(), "server", "--database-url="+nowhere, "--api-host=127.0.0.1", "--api-port="+port)
	if code != 1 || !strings.Contains(stderr, "address already in use") {
		t.Errorf("exit code %d, stderr %s", code, stderr)
	}
}

func TestServerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, stdout, stderr := execute(ctx, "server", "--database-url="+nowhere, "--api-host=127.0.0.1", "--api-port=0")
	if code != 0 || stdout != "" {
		t.Errorf("exit code %d, stdout %q, stderr %s", code, stdout, stderr)
	}
}
