package doctor

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store"
)

// migrateCommand is the remedy for what is missing or old.
func (e *examiner) migrateCommand() string { return e.command("db-migrate") }

// command is a command line of this program for the schema that is examined.
func (e *examiner) command(name string) string {
	command := "fastpubsub " + name
	if e.config.Schema != "fastpubsub" {
		command += " --database-schema=" + e.config.Schema
	}
	return command
}

// checkSchema compares the schema with what this binary makes. The other checks go by tables of this version.
func (e *examiner) checkSchema(ctx context.Context) error {
	status, err := migrations.Get(ctx, e.conn, e.config.Schema)
	if err != nil {
		return err
	}
	e.schema = status.Version > 0
	e.tables = status.Version >= store.Version && status.OldestBinary <= store.Version
	f := facts{"version": status.Version, "binary_version": status.Newest, "oldest_binary": status.OldestBinary}
	switch {
	case status.Version == 0:
		e.add(Error, e.migrateCommand(), f, "there is no schema %q", e.config.Schema)
	case status.Version < status.Newest:
		e.add(Error, e.migrateCommand(), f, "the schema %q has version %d, this binary needs %d", e.config.Schema, status.Version, status.Newest)
	case status.OldestBinary > status.Newest:
		e.add(Error, "use the newer binary that migrated it", f, "the schema %q has version %d and serves binaries from version %d on, this one has %d",
			e.config.Schema, status.Version, status.OldestBinary, status.Newest)
	case status.Version > status.Newest:
		e.add(Notice, "use the newer binary that migrated it", f, "the schema %q has version %d, this binary knows %d, and may use it", e.config.Schema, status.Version, status.Newest)
	case !status.Current:
		e.add(Warning, e.migrateCommand()+", if this binary is the newest in use", f, "the schema %q has version %d, but its functions are those of another build", e.config.Schema, status.Version)
	default:
		e.add(OK, "", f, "schema %q has version %d, and the functions of this binary", e.config.Schema, status.Version)
	}
	return nil
}

// checkOrigin finds tables that were copied from another cluster.
func (e *examiner) checkOrigin(ctx context.Context) error {
	err := store.New(e.config.Schema).CheckSchema(ctx, e.conn)
	switch {
	case errors.Is(err, store.ErrRestored):
		e.add(Error, e.command("repair")+"; the server and Broker.Run do it by themselves", nil,
			"the tables were copied from another database cluster, by a restored dump or logical replication: nothing is published or consumed")
	case err == nil:
		e.add(OK, "", nil, "the tables were written by this database cluster")
	default:
		return err
	}
	return nil
}

const getFunctions = `
SELECT coalesce(p.prosrc, '') FROM pg_proc p WHERE p.pronamespace = '{schema}'::regnamespace`

var body = regexp.MustCompile(`(?s)AS \$\$(.*?)\$\$`)

// checkFunctions looks at the functions themselves: the recorded hash does not tell what was changed by hand. A schema whose
// functions are not this binary's is left to the check of the schema. What has a body in the standard's syntax has no text.
func (e *examiner) checkFunctions(ctx context.Context) error {
	status, err := migrations.Get(ctx, e.conn, e.config.Schema)
	if err != nil || !status.Current {
		return err
	}
	installed, err := rows[struct{ Body string }](ctx, e, getFunctions)
	if err != nil {
		return err
	}
	var changed []string
	for _, f := range migrations.Functions(e.config.Schema) {
		for _, b := range body.FindAllStringSubmatch(f.SQL, -1) {
			if !slices.Contains(installed, struct{ Body string }{b[1]}) && !slices.Contains(changed, f.Name) {
				changed = append(changed, f.Name)
			}
		}
	}
	if len(changed) == 0 {
		e.add(OK, "", nil, "the functions are as they were installed")
		return nil
	}
	e.add(Error, fmt.Sprintf("UPDATE %s SET functions_hash = ''; then %s", e.sql("{schema}.log_state"), e.migrateCommand()), facts{"functions": changed},
		"%s been changed or removed since: %s", hasHave(len(changed), "function"), strings.Join(changed, ", "))
	return nil
}

// getOptions has the options that migrations gave to tables. A ring's slots are truncated before they need vacuum, and a
// vacuumed empty one flips plans; room in the pages of leases keeps acks HOT.
const getOptions = `
SELECT c.relname::text, coalesce(c.reloptions, '{}'), t.oid IS NOT NULL, coalesce(t.reloptions, '{}')
FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^((messages|cursors|leases)_\d+|deliveries)$'
ORDER BY c.relname`

func (e *examiner) checkOptions(ctx context.Context) error {
	tables, err := rows[struct {
		Name         string
		Options      []string
		HasToast     bool
		ToastOptions []string
	}](ctx, e, getOptions)
	if err != nil {
		return err
	}
	off := []string{"autovacuum_enabled=off", "autovacuum_enabled=false"}
	wrong := 0
	for _, t := range tables {
		var missing []string
		want := func(options []string, text string, spellings ...string) {
			if !slices.ContainsFunc(spellings, func(option string) bool { return slices.Contains(options, option) }) {
				missing = append(missing, text)
			}
		}
		if t.Name == "deliveries" {
			if slices.Contains(t.Options, off[0]) || slices.Contains(t.Options, off[1]) {
				wrong++
				e.add(Warning, e.sql("ALTER TABLE {schema}.deliveries RESET (autovacuum_enabled);"), nil, "autovacuum is off for deliveries, which is updated and deleted from")
			}
			want(t.Options, "autovacuum_vacuum_scale_factor = 0.02", "autovacuum_vacuum_scale_factor=0.02")
			want(t.Options, "autovacuum_vacuum_threshold = 1000", "autovacuum_vacuum_threshold=1000")
		} else {
			want(t.Options, "autovacuum_enabled = off", off...)
			if t.HasToast {
				want(t.ToastOptions, "toast.autovacuum_enabled = off", off...)
			}
		}
		if strings.HasPrefix(t.Name, "leases_") {
			want(t.Options, "fillfactor = 50", "fillfactor=50")
		}
		if len(missing) > 0 {
			wrong++
			list := strings.Join(missing, ", ")
			e.add(Notice, e.sql(fmt.Sprintf("ALTER TABLE {schema}.%s SET (%s);", t.Name, list)), facts{"table": t.Name, "missing": missing},
				"the table %s lacks options that it was made with: %s", t.Name, list)
		}
	}
	if wrong == 0 {
		e.add(OK, "", facts{"tables": len(tables)}, "%s have the options that they were made with", counted(len(tables), "table"))
	}
	return nil
}
