package migrations_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/tern/v2/migrate"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// config returns how to connect to the test's database, and the name of a schema that is dropped in the end.
func config(t *testing.T) (*pgx.ConnConfig, string) {
	t.Helper()
	config, err := pgx.ParseConfig(storetest.New(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	schema := "m_" + strings.ToLower(rand.Text())
	t.Cleanup(func() {
		conn := connect(t, config)
		if _, err := conn.Exec(context.Background(), "DROP SCHEMA IF EXISTS "+schema+" CASCADE"); err != nil {
			t.Error(err)
		}
	})
	return config, schema
}

func connect(t *testing.T, config *pgx.ConnConfig) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func status(t *testing.T, conn *pgx.Conn, schema string) migrations.Status {
	t.Helper()
	s, err := migrations.Get(t.Context(), conn, schema)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVersionIsThatOfTheNewestFile(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(os.DirFS("."), "[0-9][0-9][0-9]_*.sql")
	if err != nil || len(files) != store.Version {
		t.Errorf("there are %d numbered files, %v; store.Version is %d", len(files), err, store.Version)
	}
}

func TestUp(t *testing.T) {
	t.Parallel()
	config, schema := config(t)
	conn := connect(t, config)
	if s := status(t, conn, schema); s.Version != 0 || s.Current {
		t.Errorf("before: %+v", s)
	}
	// As when a deploy starts many processes at once.
	g, ctx := errgroup.WithContext(t.Context())
	for range 8 {
		g.Go(func() error { return migrations.Up(ctx, config, schema) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if s := status(t, conn, schema); s.Version != store.Version || s.Newest != store.Version || !s.Current {
		t.Errorf("after: %+v", s)
	}

	t.Run("functions that differ are replaced", func(t *testing.T) {
		for _, sql := range []string{
			`CREATE OR REPLACE FUNCTION %s.ack(sub_id text, xids bigint[], los bigint[], his bigint[]) RETURNS bigint LANGUAGE sql AS 'SELECT 42::bigint'`,
			`UPDATE %s.log_state SET functions_hash = 'older'`,
		} {
			if _, err := conn.Exec(t.Context(), fmt.Sprintf(sql, schema)); err != nil {
				t.Fatal(err)
			}
		}
		if s := status(t, conn, schema); s.Current {
			t.Errorf("before: %+v", s)
		}
		if err := migrations.Up(t.Context(), config, schema); err != nil {
			t.Fatal(err)
		}
		var n *int
		if err := conn.QueryRow(t.Context(), fmt.Sprintf(`SELECT %s.ack('none', '{}', '{}', '{}')`, schema)).Scan(&n); err != nil || n != nil {
			t.Errorf("ack returned %v, %v", n, err)
		}
	})

	t.Run("a newer schema is left alone", func(t *testing.T) {
		if _, err := conn.Exec(t.Context(), fmt.Sprintf(`UPDATE %s.schema_version SET version = 1000`, schema)); err != nil {
			t.Fatal(err)
		}
		err := migrations.Up(t.Context(), config, schema)
		if err == nil || !strings.Contains(err.Error(), "use a newer binary") {
			t.Errorf("got %v", err)
		}
	})
}

func TestUpAfterItWasCutOff(t *testing.T) {
	t.Parallel()
	config, schema := config(t)
	// Cancelled at many points of its way; whatever is there then, the next goes on from it.
	for i := range 40 {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		cut := config.Copy()
		cut.Tracer = tracer(func() {
			if n++; n == i {
				cancel()
			}
		})
		err := migrations.Up(ctx, cut, schema)
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled at statement %d: %v", i, err)
		}
	}
	if err := migrations.Up(t.Context(), config, schema); err != nil {
		t.Fatal(err)
	}
	if s := status(t, connect(t, config), schema); !s.Current {
		t.Errorf("after: %+v", s)
	}
}

// tracer is called before each statement.
type tracer func()

func (f tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	f()
	return ctx
}

func (tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestSchemaNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "Upper", "1st", "a-b", `a"b`, "a.b", "pg_mine", strings.Repeat("a", 64), "ä"} {
		if err := migrations.Up(t.Context(), nil, name); !errors.Is(err, migrations.ErrSchemaName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// Words of SQL are names like others.
	for _, name := range []string{"_", "a1", strings.Repeat("a", 63), "order", "user", "table"} {
		if err := migrations.CheckSchemaName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	config, _ := config(t)
	conn := connect(t, config)
	for _, word := range []string{"order", strings.Repeat("z", 63)} {
		if _, err := conn.Exec(t.Context(), `CREATE SCHEMA "`+word+`"`); err != nil {
			t.Skipf("the database has a schema %q already", word)
		}
		t.Cleanup(func() {
			conn := connect(t, config)
			if _, err := conn.Exec(context.Background(), `DROP SCHEMA "`+word+`" CASCADE`); err != nil {
				t.Error(err)
			}
		})
		if err := migrations.Up(t.Context(), config, word); err != nil {
			t.Error(err)
		}
		if s := status(t, conn, word); !s.Current {
			t.Errorf("%s: %+v", word, s)
		}
	}
}

// TestPlainUser migrates and works as a user who owns a schema and may do nothing else: no superuser, no right to create
// schemas.
func TestPlainUser(t *testing.T) {
	t.Parallel()
	admin, schema := config(t)
	conn := connect(t, admin)
	user := schema + "_user"
	for _, sql := range []string{
		`CREATE ROLE %[2]s LOGIN PASSWORD 'secret' NOSUPERUSER NOCREATEDB NOCREATEROLE`,
		`CREATE SCHEMA %[1]s AUTHORIZATION %[2]s`,
	} {
		if _, err := conn.Exec(t.Context(), fmt.Sprintf(sql, schema, user)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		conn := connect(t, admin)
		if _, err := conn.Exec(context.Background(), fmt.Sprintf(`DROP OWNED BY %[1]s CASCADE; DROP ROLE %[1]s`, user)); err != nil {
			t.Error(err)
		}
	})
	plain := admin.Copy()
	plain.User, plain.Password = user, "secret"
	if err := migrations.Up(t.Context(), plain, schema); err != nil {
		t.Fatal(err)
	}
	db := storetest.New(t) // for a pool's settings
	config := db.Pool.Config()
	config.ConnConfig.User, config.ConnConfig.Password = user, "secret"
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b, err := fastpubsub.New(pool, fastpubsub.Config{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: "s", TopicID: "t"}); err != nil {
		t.Fatal(err)
	}
	ids, err := b.Publish(t.Context(), "t", fastpubsub.JSON(struct{}{}))
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test"})
	if err != nil || len(msgs) != 1 || msgs[0].ID != ids[0] {
		t.Fatalf("consumed %v, %v", msgs, err)
	}
	if n, err := b.Ack(t.Context(), "s", ids); n != 1 || err != nil {
		t.Errorf("acked %d, %v", n, err)
	}
}

// TestRingSlots looks at what keeps the slots fast: compression where the server has the better one, no vacuum, and room for
// updates of leases.
func TestRingSlots(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	var slots, uncompressed, vacuumed, full int
	err := db.Pool.QueryRow(t.Context(), `
		SELECT count(*),
		       count(*) FILTER (WHERE c.relname LIKE 'messages%' AND (a.attcompression <> 'l') AND has.lz4),
		       count(*) FILTER (WHERE NOT coalesce(c.reloptions @> '{autovacuum_enabled=off}', false)
		                           OR NOT coalesce(toast.reloptions @> '{autovacuum_enabled=off}', false)),
		       count(*) FILTER (WHERE c.relname LIKE 'leases%' AND NOT c.reloptions @> '{fillfactor=50}')
		FROM pg_class c
		JOIN pg_inherits i ON i.inhrelid = c.oid AND c.relkind = 'r'
		LEFT JOIN pg_class toast ON toast.oid = c.reltoastrelid
		LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'payloads'
		CROSS JOIN (SELECT 'lz4' = ANY (enumvals) AS lz4 FROM pg_settings WHERE name = 'default_toast_compression') has
		WHERE c.relnamespace = $1::text::regnamespace`, db.Schema).Scan(&slots, &uncompressed, &vacuumed, &full)
	if err != nil || slots != 12 || uncompressed+vacuumed+full > 0 {
		t.Errorf("%v: of %d slots %d are not compressed by lz4, %d would be vacuumed, %d of leases have no room", err, slots, uncompressed, vacuumed, full)
	}
}

// TestReplicaIdentity looks for what a publication FOR ALL TABLES needs: an updated or deleted table has a primary key.
func TestReplicaIdentity(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	rows, err := db.Pool.Query(t.Context(), `
		SELECT c.relname FROM pg_class c
		WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'p')
		  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p') ORDER BY 1`, db.Schema)
	if err != nil {
		t.Fatal(err)
	}
	without, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range without {
		// The log is only inserted into; tern updates its own table in migrations.
		if !strings.HasPrefix(table, "messages") && table != "schema_version" {
			t.Errorf("%s has no primary key", table)
		}
	}
}

// TestTheSearchPathIsNotTrusted lets somebody else offer a function of the same name and of better fitting types.
func TestTheSearchPathIsNotTrusted(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	evil := db.Schema + "_evil"
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), db.SQL(strings.ReplaceAll(sql, "{evil}", evil))); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE SCHEMA {evil}`)
	t.Cleanup(func() {
		connect(t, db.Pool.Config().ConnConfig).Exec(context.Background(), "DROP SCHEMA "+evil+" CASCADE")
	})
	exec(`CREATE FUNCTION {evil}.trap(int8multirange, int8range) RETURNS int8multirange LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$`)
	exec(`CREATE FUNCTION {evil}.isempty(int8multirange) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$`)
	exec(`CREATE AGGREGATE {evil}.range_agg(int8range) (SFUNC = {evil}.trap, STYPE = int8multirange, INITCOND = '{}')`)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	for _, sql := range []string{
		`SET LOCAL search_path = {evil}, pg_catalog`,
		`INSERT INTO {schema}.topics (id) VALUES ('t')`,
		`SELECT {schema}.create_subscription('s', 't', NULL, NULL, 5, 5, 300, 60)`,
		`SELECT {schema}.publish_jsonb('t', ARRAY['{}'::jsonb])`,
		`COMMIT`,
		`SET search_path = {evil}, pg_catalog`,
		`SELECT {schema}.claim('s', 'test', 10, NULL, false)`,
		`SELECT * FROM {schema}.claimed()`,
		`SELECT {schema}.ack_one('s', first_xid, first_seq) FROM {schema}.leases`,
		`SELECT {schema}.ack('s', array_agg(first_xid), array_agg(first_seq), array_agg(last_seq + 1)) FROM {schema}.leases`,
		`RESET search_path`,
	} {
		if _, err := tx.Exec(t.Context(), db.SQL(strings.ReplaceAll(sql, "{evil}", evil)), pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// TestSQLPublish is what other languages call.
func TestSQLPublish(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	if _, err := db.Pool.Exec(t.Context(), db.SQL(`INSERT INTO {schema}.topics (id) VALUES ('t')`)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		reason, call string
		refused      bool
	}{
		{"two messages, one with attributes", `publish_jsonb('t', ARRAY['{"a":1}', '{}']::jsonb[], ARRAY['{"k":"v"}', NULL]::jsonb[])`, false},
		{"nothing", `publish_jsonb('t', '{}')`, true},
		{"a payload that is no object", `publish_jsonb('t', ARRAY['[]']::jsonb[])`, true},
		{"a payload that is NULL", `publish_jsonb('t', ARRAY[NULL]::jsonb[])`, true},
		{"attributes for another number of messages", `publish_jsonb('t', ARRAY['{}']::jsonb[], ARRAY['{}', '{}']::jsonb[])`, true},
		{"attributes that are no strings", `publish_jsonb('t', ARRAY['{}']::jsonb[], ARRAY['{"k":1}']::jsonb[])`, true},
		{"attributes that are no object", `publish_jsonb('t', ARRAY['{}']::jsonb[], ARRAY['[]']::jsonb[])`, true},
		{"an array that begins at 0", `publish('t', '[0:1]={"{}","{}"}', NULL)`, true},
		{"an array of two dimensions", `publish('t', '{{"{}"},{"{}"}}', NULL)`, true},
		{"a NULL payload", `publish('t', ARRAY[NULL]::text[], NULL)`, true},
		{"no array", `publish('t', NULL, NULL)`, true},
	} {
		var rows int
		err := db.Pool.QueryRow(t.Context(), db.SQL(`SELECT count(*) FROM {schema}.`+tt.call)).Scan(&rows)
		if (err != nil) != tt.refused {
			t.Errorf("%s: %v", tt.reason, err)
		}
	}
	var shown, matching int
	err := db.Pool.QueryRow(t.Context(), db.SQL(`
		SELECT count(*), count(*) FILTER (WHERE topic_id = 't' AND payload = '{"a":1}' AND attributes = '{"k":"v"}')
		FROM {schema}.published`)).Scan(&shown, &matching)
	if err != nil || shown != 2 || matching != 1 {
		t.Errorf("the view shows %d messages, %d of them as published, %v", shown, matching, err)
	}
}

// TestUpFromVersion1 upgrades a schema in use: what was leased before there was an end of leases comes again.
func TestUpFromVersion1(t *testing.T) {
	t.Parallel()
	config, schema := config(t)
	conn := connect(t, config)
	quoted := pgx.Identifier{schema}.Sanitize()
	if _, err := conn.Exec(t.Context(), "CREATE SCHEMA "+quoted); err != nil {
		t.Fatal(err)
	}
	migrator, err := migrate.NewMigrator(t.Context(), conn, quoted+".schema_version")
	if err != nil {
		t.Fatal(err)
	}
	migrator.Data = map[string]any{"schema": quoted}
	if err := migrator.LoadMigrations(os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	if err := migrator.MigrateTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	const seq = 7 << 16
	_, err = conn.Exec(t.Context(), fmt.Sprintf(strings.ReplaceAll(`
		INSERT INTO {schema}.log_state (version, oldest_binary, functions_hash) VALUES (1, 1, 'older');
		INSERT INTO {schema}.topics (id) VALUES ('t');
		INSERT INTO {schema}.subscriptions (id, topic_num, max_delivery_attempts, backoff_min_seconds, backoff_max_seconds, ack_deadline_seconds)
		VALUES ('s', 1, 5, 5, 300, 60);
		INSERT INTO {schema}.messages (xid, base, created_at, topic_num, n, slot, payloads) VALUES (700, %[1]d, now(), 1, 2, 0, ARRAY['{"n":0}', '{"n":1}']);
		INSERT INTO {schema}.cursors (gen, xid, seq, sub, slot, late_xids, late_seqs) VALUES (1, 700, %[1]d + 1, 1, 0, '{}', '{}');
		INSERT INTO {schema}.leases (first_xid, first_seq, last_xid, last_seq, deadline, sub, acked, kind, slot, consumer, remaining)
		VALUES (700, %[1]d, 700, %[1]d + 1, now() - interval '1 day', 1, 1, 0, 0, 'old', int8multirange(int8range(%[1]d, %[1]d + 1)))`,
		"{schema}", quoted), seq))
	if err != nil {
		t.Fatal(err)
	}

	// Functions as older binaries had them: other arguments, and other results.
	_, err = conn.Exec(t.Context(), strings.ReplaceAll(`
		CREATE FUNCTION {schema}.claim(text, text, int, int, boolean) RETURNS text LANGUAGE sql AS $$ SELECT 'older' $$;
		CREATE FUNCTION {schema}.current_slot(ring text) RETURNS text LANGUAGE sql AS $$ SELECT 'older' $$;`, "{schema}", quoted))
	if err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(t.Context(), config, schema); err != nil {
		t.Fatal(err)
	}
	var claims int
	err = conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_proc WHERE pronamespace = $1::regnamespace AND proname = 'claim'`, schema).Scan(&claims)
	if err != nil || claims != 1 {
		t.Errorf("%d functions have the name claim: %v", claims, err)
	}
	pool, err := pgxpool.New(t.Context(), config.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b, err := fastpubsub.New(pool, fastpubsub.Config{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "new"})
	if err != nil || len(msgs) != 1 || string(msgs[0].Payload) != `{"n":0}` || msgs[0].DeliveryAttempts != 2 {
		t.Fatalf("%v, %v comes", msgs, err)
	}
	m, err := b.Metrics(t.Context(), "s")
	if err != nil || m.Delivered != 1 || m.Acked != 1 {
		t.Errorf("metrics are %+v, %v", m, err)
	}
}
