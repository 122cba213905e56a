package doctor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/doctor"
	"github.com/fastpubsub/fastpubsub/store"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// parse reads an address as the command does.
func parse(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["application_name"] = "doctor test"
	return config
}

// config is that of an examination of db, with changes.
func config(t *testing.T, db *storetest.DB, changes ...func(*doctor.Config)) doctor.Config {
	t.Helper()
	c := doctor.Config{Database: parse(t, db.URL), Schema: db.Schema, Pool: 15}
	for _, change := range changes {
		change(&c)
	}
	return c
}

// examine examines db.
func examine(t *testing.T, db *storetest.DB, changes ...func(*doctor.Config)) *doctor.Report {
	t.Helper()
	return doctor.Examine(t.Context(), config(t, db, changes...))
}

// limits changes the limits.
func limits(l doctor.Limits) func(*doctor.Config) {
	return func(c *doctor.Config) { c.Limits = l }
}

// find returns the first finding of a check whose summary has all the texts.
func find(report *doctor.Report, check string, texts ...string) (doctor.Finding, bool) {
	for _, f := range report.Findings {
		if f.Check == check && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(f.Summary, text) }) {
			return f, true
		}
	}
	return doctor.Finding{}, false
}

// want fails the test unless there is such a finding, whose remedy begins like that, and returns it.
func want(t *testing.T, report *doctor.Report, check string, severity doctor.Severity, remedy string, texts ...string) doctor.Finding {
	t.Helper()
	f, ok := find(report, check, texts...)
	if !ok {
		var all strings.Builder
		_ = report.WriteText(&all)
		t.Fatalf("%s has no finding with %q:\n%s", check, texts, &all)
	}
	if f.Severity != severity || !strings.HasPrefix(f.Remedy, remedy) || remedy == "" && f.Remedy != "" {
		t.Errorf("%s: %v %q with the remedy %q; want %v and %q", check, f.Severity, f.Summary, f.Remedy, severity, remedy)
	}
	return f
}

func execSQL(t *testing.T, db *storetest.DB, sql string) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), db.SQL(sql), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// begin begins a transaction that runs sql, and ends with the test.
func begin(t *testing.T, db *storetest.DB, sql string) pgx.Tx {
	t.Helper()
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(t.Context(), db.SQL(sql), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	return tx
}

// subscribed returns a broker whose topic t has a subscription s that delivers a message twice at most.
func subscribed(t *testing.T, db *storetest.DB) *fastpubsub.Broker {
	t.Helper()
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broker.CreateTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	_, err = broker.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: "s", TopicID: "t",
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 2}})
	if err != nil {
		t.Fatal(err)
	}
	return broker
}

func publish(t *testing.T, broker *fastpubsub.Broker, n int) {
	t.Helper()
	msgs := make([]fastpubsub.NewMessage, n)
	for i := range msgs {
		msgs[i] = fastpubsub.JSON(map[string]int{"n": i})
	}
	if _, err := broker.Publish(t.Context(), "t", msgs...); err != nil {
		t.Fatal(err)
	}
}

func consume(t *testing.T, broker *fastpubsub.Broker, n int) []fastpubsub.Message {
	t.Helper()
	msgs, err := broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "worker-1", Max: n})
	if err != nil || len(msgs) != n {
		t.Fatalf("%d messages of %d, %v", len(msgs), n, err)
	}
	return msgs
}

func ack(t *testing.T, broker *fastpubsub.Broker, msgs []fastpubsub.Message) {
	t.Helper()
	ids := make([]fastpubsub.ID, len(msgs))
	for i := range msgs {
		ids[i] = msgs[i].ID
	}
	if n, err := broker.Ack(t.Context(), "s", ids); err != nil || n != len(ids) {
		t.Fatalf("acked %d of %d, %v", n, len(ids), err)
	}
}

func deliveries(msgs []fastpubsub.Message) []fastpubsub.Delivery {
	all := make([]fastpubsub.Delivery, len(msgs))
	for i := range msgs {
		all[i] = msgs[i].Delivery
	}
	return all
}

// nack makes dead letters of messages that were delivered for the second time.
func nack(t *testing.T, broker *fastpubsub.Broker, msgs []fastpubsub.Message) {
	t.Helper()
	n, err := broker.Nack(t.Context(), "s", deliveries(msgs), fastpubsub.NackOptions{Immediate: true, Error: "no luck"})
	if err != nil || n != len(msgs) {
		t.Fatalf("nacked %d of %d, %v", n, len(msgs), err)
	}
}

func move(t *testing.T, clock *storetest.Clock, d time.Duration) {
	t.Helper()
	if err := clock.Move(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

// A server as it should be has nothing worse than notices, each check has looked, and the report can be read by programs.
func TestHealthy(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, nil)
	broker := subscribed(t, db)
	publish(t, broker, 3)
	ack(t, broker, consume(t, broker, 2))
	report := examine(t, db)
	if report.Severity > doctor.Notice {
		var text strings.Builder
		_ = report.WriteText(&text)
		t.Errorf("a healthy server is not:\n%s", &text)
	}
	var seen []string
	for _, f := range report.Findings {
		if len(seen) == 0 || seen[len(seen)-1] != f.Check {
			seen = append(seen, f.Check)
		}
	}
	const all = "server schema origin functions durability pooler listen connections clock horizon writers prepared replication timeouts " +
		"lag dead_letters leases message_slots lease_slots compression options freezing vacuum deliveries orphans"
	if got := strings.Join(seen, " "); got != all {
		t.Errorf("checks\n%s, want\n%s", got, all)
	}
	want(t, report, "message_slots", doctor.OK, "", "slot 0 (current) of the log: ", "oldest message ")
	want(t, report, "lease_slots", doctor.OK, "", "slot 0 (current) of leases and cursors: ")
	want(t, report, "message_slots", doctor.OK, "", "empty: 1, 2, 3")

	text, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Severity      string
		ServerVersion string `json:"server_version"`
		Schema        string
		Findings      []struct{ Check, Severity, Summary string }
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	if document.Schema != db.Schema || document.ServerVersion == "" || len(document.Findings) != len(report.Findings) ||
		document.Findings[0].Severity != "ok" || document.Severity != report.Severity.String() {
		t.Errorf("%s", text)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	report := doctor.Examine(t.Context(), doctor.Config{Database: parse(t, "postgres://u:secret@127.0.0.1:1/d"), Schema: "fastpubsub"})
	f := want(t, report, "connection", doctor.Error, "check FASTPUBSUB_DATABASE_URL", "cannot be reached")
	if len(report.Findings) != 1 || strings.Contains(f.Summary, "secret") {
		t.Errorf("%+v", report.Findings)
	}
}

// What hangs or fails costs that check, within its time, and no other.
func TestBounds(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	broker := subscribed(t, db)
	clock := db.StopClock(t)
	publish(t, broker, 1)
	move(t, clock, 2*time.Hour)
	begin(t, db, "LOCK TABLE {schema}.deliveries IN ACCESS EXCLUSIVE MODE")
	begun := time.Now()
	report := examine(t, db, limits(doctor.Limits{Check: 400 * time.Millisecond}))
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	const busy = "see what the server is busy with"
	for _, check := range []string{"dead_letters", "deliveries", "orphans"} {
		want(t, report, check, doctor.Warning, busy, "could not be looked at within 400 ms")
	}
	want(t, report, "lag", doctor.Warning, busy, "what waits for 1 subscription could not be counted within 80 ms")
	want(t, report, "lag", doctor.Warning, "start a consumer", "more messages wait than can be counted in 80 ms, the oldest for 2 h; slot 0 of the log")
	if _, late := find(report, "message_slots", "could not be looked at"); !late { // as on a busy machine
		want(t, report, "message_slots", doctor.OK, "", "slot 0 (current) of the log")
	}

	begun = time.Now()
	report = examine(t, db, limits(doctor.Limits{Check: 2 * time.Second, Total: 3 * time.Second}))
	want(t, report, "time", doctor.Warning, "run doctor again", "checks were not done: out of time")
	if took := time.Since(begun); took > 6*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestSchemaVersions(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	migrate := "fastpubsub db-migrate --database-schema=" + db.Schema
	report := examine(t, db, func(c *doctor.Config) { c.Schema = "nowhere" })
	want(t, report, "schema", doctor.Error, "fastpubsub db-migrate --database-schema=nowhere", `there is no schema "nowhere"`)
	want(t, report, "listen", doctor.OK, "", "arrived") // others go on
	if _, ok := find(report, "lag"); ok {
		t.Error("lag was looked for in no schema")
	}
	for _, test := range []struct {
		set      string
		severity doctor.Severity
		remedy   string
		text     string
	}{
		{fmt.Sprint("version = ", store.Version-1), doctor.Error, migrate, fmt.Sprintf("has version %d, this binary needs %d", store.Version-1, store.Version)},
		{"version = 99, oldest_binary = 98", doctor.Error, "use the newer binary", fmt.Sprint("serves binaries from version 98 on, this one has ", store.Version)},
		{"version = 99, oldest_binary = 1", doctor.Notice, "use the newer binary", fmt.Sprintf("this binary knows %d, and may use it", store.Version)},
		{fmt.Sprintf("version = %d, functions_hash = ''", store.Version), doctor.Warning, migrate, "functions are those of another build"},
	} {
		execSQL(t, db, "UPDATE {schema}.log_state SET "+test.set)
		want(t, examine(t, db), "schema", test.severity, test.remedy, test.text)
	}
}

func TestFunctions(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	want(t, examine(t, db), "functions", doctor.OK, "", "as they were installed")
	execSQL(t, db, `CREATE OR REPLACE FUNCTION {schema}.newest_cursor(sub_num int) RETURNS SETOF {schema}.cursors LANGUAGE sql STABLE AS $$
		SELECT c.* FROM {schema}.cursors c WHERE c.sub = sub_num ORDER BY c.gen DESC, c.slot LIMIT 1 $$`)
	f := want(t, examine(t, db), "functions", doctor.Error, db.SQL("UPDATE {schema}.log_state SET functions_hash = ''; then fastpubsub db-migrate"), "1 function has", "newest_cursor")
	update, _, _ := strings.Cut(f.Remedy, ";")
	execSQL(t, db, update)
	want(t, examine(t, db), "schema", doctor.Warning, "fastpubsub db-migrate", "another build")
}

func TestEncoding(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, nil) // whose user creates databases
	name := db.Schema[:min(len(db.Schema), 50)] + "_ascii"
	execSQL(t, db, "CREATE DATABASE "+name+" ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
	report := examine(t, db, func(c *doctor.Config) { c.Database.Database = name })
	want(t, report, "server", doctor.Error, "CREATE DATABASE", "encoding is SQL_ASCII")
	want(t, report, "schema", doctor.Error, "fastpubsub db-migrate", "there is no schema")
}

// Settings that lose data or let tables grow.
func TestSettings(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, map[string]string{
		"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "autovacuum": "off", "track_counts": "off",
		"autovacuum_freeze_max_age": "100000",
	})
	execSQL(t, db, "DO $$ BEGIN FOR i IN 1..81000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
	report := examine(t, db)
	want(t, report, "durability", doctor.Error, "ALTER SYSTEM SET fsync = on", "fsync is off")
	want(t, report, "durability", doctor.Error, "ALTER SYSTEM SET full_page_writes = on", "full_page_writes is off")
	want(t, report, "durability", doctor.Warning, "ALTER ROLE ", "synchronous_commit is off")
	want(t, report, "vacuum", doctor.Warning, "ALTER SYSTEM SET autovacuum = on", "autovacuum is off")
	want(t, report, "vacuum", doctor.Warning, "ALTER SYSTEM SET track_counts = on", "track_counts is off")
	f := want(t, report, "freezing", doctor.Notice, db.SQL("VACUUM (FREEZE) {schema}."), "transactions old", "at 100,000")
	table := f.Facts["table"]
	vacuum, _, _ := strings.Cut(f.Remedy, ";")
	execSQL(t, db, vacuum)
	if f, ok := find(examine(t, db), "freezing"); !ok || f.Facts["table"] == table {
		t.Errorf("after the remedy %v is the oldest still", table)
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	with := func(name, value string) func(*doctor.Config) {
		return func(c *doctor.Config) { c.Database.RuntimeParams[name] = value }
	}
	report := examine(t, db)
	want(t, report, "timeouts", doctor.Notice, "ALTER ROLE ", "idle_in_transaction_session_timeout is off")
	report = examine(t, db, with("idle_in_transaction_session_timeout", "10min"), with("statement_timeout", "1s"))
	want(t, report, "timeouts", doctor.OK, "", "idle_in_transaction_session_timeout is 10 min")
	want(t, report, "timeouts", doctor.Warning, "ALTER ROLE ", "statement_timeout is 1 s")
}

func TestConnections(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	want(t, examine(t, db), "connections", doctor.OK, "", "connections are in use", "opens up to 15")
	report := examine(t, db, func(c *doctor.Config) { c.Pool = 10_000 })
	want(t, report, "connections", doctor.Warning, "lower FASTPUBSUB_DATABASE_POOL_SIZE", "opens up to 10,000")
}

func TestConnectionsShort(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, map[string]string{"max_connections": "20"})
	want(t, examine(t, db, func(c *doctor.Config) { c.Pool = 17 }), "connections", doctor.Notice, "lower FASTPUBSUB_DATABASE_POOL_SIZE", "max_connections 20, 3 reserved")
	var open []*pgx.Conn
	defer func() {
		for _, conn := range open {
			_ = conn.Close(context.Background())
		}
	}()
	for range 15 {
		conn, err := pgx.Connect(t.Context(), db.URL)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	want(t, examine(t, db, func(c *doctor.Config) { c.Pool = 1 }), "connections", doctor.Warning, "lower the pools", "of 17 connections")
}

func TestClock(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	const remedy = "run NTP"
	for _, test := range []struct {
		off      time.Duration
		severity doctor.Severity
		remedy   string
		text     string
	}{
		{0, doctor.OK, "", "the server's clock is"},
		{-10 * time.Second, doctor.Notice, remedy, "10 s ahead of"},
		{time.Hour, doctor.Warning, remedy, "60 min behind"},
	} {
		report := examine(t, db, func(c *doctor.Config) { c.Now = func() time.Time { return time.Now().Add(test.off) } })
		want(t, report, "clock", test.severity, test.remedy, test.text)
	}
}

// A role that may do nothing is told what to grant, and what it is told helps.
func TestRole(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, nil) // whose user creates roles
	role := db.Schema[:min(len(db.Schema), 50)] + "_role"
	execSQL(t, db, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'reader'", role))
	t.Cleanup(func() {
		_, _ = db.Pool.Exec(context.Background(), fmt.Sprintf("DROP OWNED BY %[1]s; DROP ROLE %[1]s", role), pgx.QueryExecModeSimpleProtocol)
	})
	as := func(c *doctor.Config) { c.Database.User, c.Database.Password = role, "reader" }

	begin(t, db, "SELECT pg_current_xact_id()")
	report := examine(t, db, as)
	f := want(t, report, "schema", doctor.Warning, db.SQL("GRANT USAGE ON SCHEMA {schema} TO "), "could not be looked at: permission denied for schema")
	execSQL(t, db, f.Remedy)

	report = examine(t, db, as)
	for _, f := range report.Findings {
		if strings.Contains(f.Summary, "could not be looked at") {
			t.Errorf("%s after the grant: %s", f.Check, f.Summary)
		}
	}
	want(t, report, "schema", doctor.OK, "", "has version")
	f = want(t, report, "visibility", doctor.Notice, "GRANT pg_read_all_stats TO ", "does not see what sessions of other roles do")
	want(t, report, "writers", doctor.OK, "", "0 transactions write")
	execSQL(t, db, f.Remedy)
	report = examine(t, db, as, limits(doctor.Limits{TransactionNotice: time.Nanosecond}))
	if _, ok := find(report, "visibility"); ok {
		t.Error("it still does not see other roles")
	}
	want(t, report, "writers", doctor.Notice, "end it where it was begun", "has a transaction open")
}
