package storetest_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestNewPgBouncer shows that clients do share sessions: it is what tests through PgBouncer are for.
func TestNewPgBouncer(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	config, err := pgx.ParseConfig(storetest.NewPgBouncer(t, db))
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.RuntimeParams["search_path"] = "public" // has no effect, and is no error
	var clients [2]*pgx.Conn
	for i := range clients {
		if clients[i], err = pgx.ConnectConfig(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		defer clients[i].Close(context.WithoutCancel(t.Context()))
	}
	ask := func(client *pgx.Conn, sql string) string {
		t.Helper()
		var answer string
		if err := client.QueryRow(t.Context(), db.SQL(sql)).Scan(&answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	ask(clients[0], `SELECT set_config('fastpubsub.test', 'of the first client', false)`)
	if got := ask(clients[1], `SELECT current_setting('fastpubsub.test', true)`); got != "of the first client" {
		t.Errorf("the second client has %q, so it has a session of its own", got)
	}
	if got := ask(clients[1], `SHOW search_path`); got != `""` {
		t.Errorf("search_path is %s", got)
	}
	if got := ask(clients[1], `SELECT version::text FROM {schema}.log_state`); got == "" {
		t.Error("the schema is not there")
	}
}
