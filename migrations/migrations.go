// Package migrations creates and upgrades the schema that fastpubsub lives in.
//
// Numbered files make tables; each runs once, in order, in a transaction of its own. The engine's functions are code,
// not history: after the numbered files all of them are created again together, in one transaction, whenever their
// text differs from what is installed.
package migrations

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"

	"github.com/fastpubsub/fastpubsub/store"
)

//go:embed *.sql
var numbered embed.FS

//go:embed functions/*.sql
var functions embed.FS

// oldestBinary is the oldest schema version whose binaries still work on the schema that these files make. Raise it
// when a table or function that they use goes away.
const oldestBinary = 2

// ErrSchemaName means that a schema name was not made of 1 to 63 lower-case letters, digits and underscores, the first
// no digit, or began with pg_.
var ErrSchemaName = store.ErrSchemaName

// CheckSchemaName returns ErrSchemaName, wrapped with the name, for a name that cannot be used.
func CheckSchemaName(schema string) error {
	if err := store.CheckSchemaName(schema); err != nil {
		return fmt.Errorf("%q: %w", schema, err)
	}
	return nil
}

// Up makes the schema, or brings it up to the newest version. Any number of processes may call it at once: one
// migrates, the others wait for it and find nothing left to do. It needs the right to create schemas in the database,
// or a schema of that name to create tables in.
//
// It opens a connection of its own, with config, and closes it. That must be a direct one, since migrating takes locks
// that belong to the session: not PgBouncer in transaction mode. A numbered file that fails, or is cancelled, leaves the
// schema as the file before it did; calling Up again goes on from there.
//
// It returns ErrSchemaName for a name that cannot be used. A schema that a newer binary has migrated is left alone, with
// an error, also where binaries of this version can still work on it.
func Up(ctx context.Context, config *pgx.ConnConfig, schema string) error {
	if err := CheckSchemaName(schema); err != nil {
		return err
	}
	// Whatever the host program set for its own connections, a migration may take long and wait for locks.
	config = config.Copy()
	config.RuntimeParams["statement_timeout"] = "0"
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	config.RuntimeParams["default_transaction_isolation"] = "read committed"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	defer func() {
		// The connection holds locks until it is closed; a cancelled ctx must not leave it open.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		conn.Close(ctx)
	}()
	if err := up(ctx, conn, schema); err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	return nil
}

func up(ctx context.Context, conn *pgx.Conn, schema string) error {
	quoted := pgx.Identifier{schema}.Sanitize()

	var version, encoding string
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num'), current_setting('server_encoding')`).Scan(&version, &encoding)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(version); err != nil || n < 140000 {
		return fmt.Errorf("PostgreSQL 14 or newer is needed, this server reports %s", version)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database's encoding must be UTF8, it is %s", encoding)
	}

	// tern's own lock does not cover the schema and the functions. Ours is one for each schema, and belongs to the session.
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtextextended($1, 0))`, "fastpubsub migrations of "+schema); err != nil {
		return err
	}
	// CREATE SCHEMA IF NOT EXISTS asks for the right to create even where there is nothing to create.
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)`, schema).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		if _, err := conn.Exec(ctx, "CREATE SCHEMA "+quoted); err != nil {
			return err
		}
	}

	migrator, err := migrate.NewMigrator(ctx, conn, quoted+".schema_version")
	if err != nil {
		return err
	}
	migrator.Data = map[string]any{"schema": quoted}
	if err := migrator.LoadMigrations(numbered); err != nil {
		return err
	}
	current, err := migrator.GetCurrentVersion(ctx)
	if err != nil {
		return err
	}
	if newest := int32(len(migrator.Migrations)); current > newest {
		return fmt.Errorf("the schema has version %d, this binary knows versions up to %d: use a newer binary", current, newest)
	}
	if err := migrator.Migrate(ctx); err != nil {
		return err
	}
	return installFunctions(ctx, conn, schema)
}

// recordState says what the schema is now. It is written with the functions, in their transaction.
const recordState = `
INSERT INTO {schema}.log_state (version, oldest_binary, functions_hash) VALUES ($1, $2, $3)
ON CONFLICT (key) DO UPDATE SET version = $1, oldest_binary = $2, functions_hash = $3`

func installFunctions(ctx context.Context, conn *pgx.Conn, schema string) error {
	sources := Functions(schema)
	hash := functionsHash()
	status, err := Get(ctx, conn, schema)
	if err != nil {
		return err
	}
	if status.Version == store.Version && status.FunctionsHash == hash {
		return nil
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// Functions name each other; their bodies are checked when they first run. Views and bodies in the standard's
		// syntax are checked at once: what they name must come first by its file's name, as message_id before published.
		if _, err := tx.Exec(ctx, `SET LOCAL check_function_bodies = off`); err != nil {
			return err
		}
		for _, f := range sources {
			if err := installFunction(ctx, tx, schema, f); err != nil {
				return fmt.Errorf("%s: %w", f.Name, err)
			}
		}
		if err := dropReplaced(ctx, tx, schema, sources); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, fill(recordState, schema), store.Version, oldestBinary, hash)
		return err
	})
}

// installFunction runs one file of the engine. What a function returns cannot be replaced, so where that has changed it is
// dropped first.
func installFunction(ctx context.Context, tx pgx.Tx, schema string, f Function) error {
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, f.SQL)
		return err
	})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "42P13" { // invalid_function_definition
		return err
	}
	_, err = tx.Exec(ctx, "DROP FUNCTION "+pgx.Identifier{schema, f.Name}.Sanitize()+"; "+f.SQL, pgx.QueryExecModeSimpleProtocol)
	return err
}

// replacedFunctions are those that have been replaced by a newer one of the same name with other arguments.
const replacedFunctions = `
SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc p
WHERE p.pronamespace = to_regnamespace($1) AND p.proname = ANY ($2)
  AND EXISTS (SELECT FROM pg_catalog.pg_proc q
              WHERE q.pronamespace = p.pronamespace AND q.proname = p.proname AND q.oid > p.oid)`

// dropReplaced leaves one function to a name, the newest: two would make calls ambiguous.
func dropReplaced(ctx context.Context, tx pgx.Tx, schema string, sources []Function) error {
	names := make([]string, len(sources))
	for i, f := range sources {
		names[i] = f.Name
	}
	rows, _ := tx.Query(ctx, replacedFunctions, pgx.Identifier{schema}.Sanitize(), names) // CollectRows reports Query's error
	replaced, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, function := range replaced {
		if _, err := tx.Exec(ctx, "DROP FUNCTION "+function); err != nil {
			return err
		}
	}
	return nil
}

// A Function is one file of the engine: functions or views that are replaced as a whole.
type Function struct {
	Name string // of the file, without .sql
	SQL  string
}

// Functions returns the engine's functions for a schema, in the order in which they are installed.
func Functions(schema string) []Function {
	names, err := fs.Glob(functions, "functions/*.sql")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	all := make([]Function, 0, len(names))
	for _, name := range names {
		text, err := functions.ReadFile(name)
		if err != nil {
			panic(err) // it is embedded
		}
		all = append(all, Function{
			Name: strings.TrimSuffix(strings.TrimPrefix(name, "functions/"), ".sql"),
			SQL:  fill(string(text), schema),
		})
	}
	return all
}

func functionsHash() string {
	h := sha256.New()
	for _, f := range Functions("{schema}") {
		fmt.Fprintf(h, "%s\x00%s\x00", f.Name, f.SQL)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func fill(sql, schema string) string {
	return strings.ReplaceAll(sql, "{schema}", pgx.Identifier{schema}.Sanitize())
}

// Status says how a schema stands to this binary.
type Status struct {
	Version       int    // of the schema; 0 when there is none
	Newest        int    // the version that Up of this binary makes
	OldestBinary  int    // binaries of this version or newer work on the schema
	FunctionsHash string // of the functions as installed
	Current       bool   // Up has nothing to do
}

const getStatus = `SELECT version, oldest_binary, functions_hash FROM {schema}.log_state`

// Get returns the status of a schema, which need not exist. It writes nothing. It returns ErrSchemaName for a name that
// cannot be used.
func Get(ctx context.Context, db store.DBTX, schema string) (Status, error) {
	status := Status{Newest: store.Version}
	if err := CheckSchemaName(schema); err != nil {
		return status, err
	}
	var exists bool
	if err := db.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, pgx.Identifier{schema, "log_state"}.Sanitize()).Scan(&exists); err != nil {
		return status, err
	}
	if !exists {
		return status, nil
	}
	err := db.QueryRow(ctx, fill(getStatus, schema)).Scan(&status.Version, &status.OldestBinary, &status.FunctionsHash)
	if errors.Is(err, pgx.ErrNoRows) {
		return status, nil // made, but the functions are still missing
	}
	status.Current = status.Version == store.Version && status.FunctionsHash == functionsHash()
	return status, err
}
