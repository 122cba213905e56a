package doctor_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/doctor"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestPooler(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	direct := func(c *doctor.Config) { c.Migrate, c.Listen = parse(t, db.URL), parse(t, db.URL) }
	const listenRemedy = "set FASTPUBSUB_LISTEN_DATABASE_URL to the server's own address"
	const migrateRemedy = "set FASTPUBSUB_MIGRATE_DATABASE_URL to the server's own address"
	through := func(address string) func(*doctor.Config) {
		return func(c *doctor.Config) { c.Database = parse(t, address) }
	}
	t.Run("None", func(t *testing.T) {
		report := examine(t, db)
		want(t, report, "pooler", doctor.OK, "", "leads to the server itself")
		want(t, report, "listen", doctor.OK, "", "a notification through FASTPUBSUB_DATABASE_URL arrived after ")
	})
	t.Run("Transaction", func(t *testing.T) {
		address := storetest.NewPgBouncer(t, db)
		report := examine(t, db, through(address))
		f, ok := find(report, "pooler", "a pooler in transaction mode")
		if !ok {
			t.Fatalf("%+v", report.Findings)
		}
		if f.Facts["prepared_statements"] == false { // PgBouncer before 1.21
			want(t, report, "pooler", doctor.Error, "add default_query_exec_mode=exec to FASTPUBSUB_DATABASE_URL", "the query mode cache_statement needs a session of its own")
		}
		want(t, report, "pooler", doctor.Warning, migrateRemedy, "db-migrate locks by session")
		want(t, report, "listen", doctor.Warning, listenRemedy, "notifications cannot arrive there")
		want(t, report, "lag", doctor.OK, "", "0 subscriptions") // the others work
		want(t, report, "connections", doctor.OK, "", "the pooler decides")

		for mode, severity := range map[string]doctor.Severity{"exec": doctor.OK, "cache_describe": doctor.OK, "simple_protocol": doctor.OK, "describe_exec": doctor.Error} {
			report := examine(t, db, through(address+"&default_query_exec_mode="+mode), direct)
			f, _ := find(report, "pooler", "FASTPUBSUB_DATABASE_URL leads to a pooler in transaction mode")
			if f.Severity != severity {
				t.Errorf("%s: %+v", mode, f)
			}
			want(t, report, "pooler", doctor.OK, "", "FASTPUBSUB_MIGRATE_DATABASE_URL leads to the server itself")
			want(t, report, "listen", doctor.OK, "", "a notification through FASTPUBSUB_LISTEN_DATABASE_URL arrived")
		}
		report = examine(t, db, func(c *doctor.Config) { c.Migrate, c.Listen = parse(t, address), parse(t, address) })
		want(t, report, "pooler", doctor.Warning, migrateRemedy, "FASTPUBSUB_MIGRATE_DATABASE_URL leads to a pooler in transaction mode")
		want(t, report, "listen", doctor.Warning, listenRemedy, "FASTPUBSUB_LISTEN_DATABASE_URL leads to a pooler in transaction mode")

		// Nothing is left in the sessions that clients share.
		client, err := pgx.ConnectConfig(t.Context(), parse(t, address+"&default_query_exec_mode=exec"))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close(context.WithoutCancel(t.Context()))
		var left []string
		const whatIsLeft = `SELECT ARRAY(SELECT name FROM pg_prepared_statements WHERE name LIKE '%doctor%' UNION SELECT pg_listening_channels())`
		for range storetest.PgBouncerConnections {
			if err := client.QueryRow(t.Context(), whatIsLeft).Scan(&left); err != nil || len(left) > 0 {
				t.Errorf("%v, %v left", err, left)
			}
		}
	})
	t.Run("Session", func(t *testing.T) {
		report := examine(t, db, through(storetest.NewPgBouncerMode(t, db, "session")))
		want(t, report, "pooler", doctor.OK, "", "a pooler in session mode")
		want(t, report, "listen", doctor.OK, "", "arrived")
	})
	t.Run("Statement", func(t *testing.T) {
		report := examine(t, db, through(storetest.NewPgBouncerMode(t, db, "statement")))
		want(t, report, "pooler", doctor.Error, "set pool_mode = transaction", "a pooler in statement mode")
		want(t, report, "lag", doctor.OK, "", "0 subscriptions")
	})
}

// Notifications stay in their database.
func TestListenElsewhere(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	elsewhere := func(c *doctor.Config) {
		c.Listen = parse(t, db.URL)
		c.Listen.Database = "template1"
		c.Limits.Wake = 200 * time.Millisecond
	}
	report := examine(t, db, elsewhere)
	want(t, report, "listen", doctor.Warning, "set FASTPUBSUB_LISTEN_DATABASE_URL to an address of the same database", "did not arrive within 200 ms")
	report = examine(t, db, func(c *doctor.Config) {
		away, err := pgx.ParseConfig("postgres://u:secret@127.0.0.1:1/d")
		if err != nil {
			t.Fatal(err)
		}
		c.Listen, c.Migrate = away, away
	})
	want(t, report, "listen", doctor.Warning, "set FASTPUBSUB_LISTEN_DATABASE_URL", "cannot be reached")
	want(t, report, "pooler", doctor.Warning, "set FASTPUBSUB_MIGRATE_DATABASE_URL", "cannot be reached")
}
