package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// An Invariant is something that holds in every schema whenever no transaction is open.
type Invariant struct {
	// Name says what holds, such as "leases of a subscription do not overlap".
	Name string
	// Query returns the rows that violate it. {schema} stands for the quoted name of the schema.
	Query string
}

// Invariants are checked when a DB is closed.
var Invariants = []Invariant{
	{"leases of the main scan do not overlap", `
SELECT a.sub, a.first_xid, a.first_seq FROM {schema}.leases a
JOIN {schema}.leases b ON b.sub = a.sub AND b.kind = 0 AND (b.first_xid, b.first_seq) > (a.first_xid, a.first_seq)
                      AND (b.first_xid, b.first_seq) <= (a.last_xid, a.last_seq)
WHERE a.kind = 0`},
	{"no message is leased twice", `
SELECT a.sub, a.first_xid, a.first_seq FROM {schema}.leases a
JOIN {schema}.leases b ON b.sub = a.sub AND b.remaining && a.remaining
WHERE (a.kind, a.first_xid, a.first_seq) < (b.kind, b.first_xid, b.first_seq)`},
	{"a lease of a late transaction is of that one alone", `
SELECT sub, first_xid, last_xid FROM {schema}.leases WHERE kind = 1 AND first_xid <> last_xid`},
	{"what a lease was granted for is acked or remains", `
SELECT sub, first_xid, first_seq FROM {schema}.leases
WHERE acked < 0 OR isempty(remaining) AND acked = 0`},
	{"a cursor has no gaps", `
SELECT sub FROM {schema}.cursors GROUP BY sub HAVING count(*) <> max(gen) - min(gen) + 1`},
	{"a cursor never goes back", `
SELECT a.sub, a.gen FROM {schema}.cursors a JOIN {schema}.cursors b ON b.sub = a.sub AND b.gen = a.gen + 1
WHERE (b.xid, b.seq) < (a.xid, a.seq)`},
	{"late transactions ascend, and lie behind the cursor", `
SELECT sub, gen FROM {schema}.cursors
WHERE cardinality(late_xids) <> cardinality(late_seqs)
   OR late_xids <> ARRAY(SELECT DISTINCT x FROM unnest(late_xids) x ORDER BY x) OR xid < ANY (late_xids)`},
	{"a lease of the main scan lies behind the cursor", `
SELECT l.sub, l.first_xid, l.first_seq FROM {schema}.leases l
WHERE NOT EXISTS (SELECT FROM {schema}.cursors c WHERE c.sub = l.sub AND (c.xid, c.seq) >= (l.last_xid, l.last_seq))`},
}

// SkipInvariants is for a test that breaks the engine on purpose.
func (db *DB) SkipInvariants() { db.skipInvariants = true }

// CheckInvariants returns an error that names each of Invariants that does not hold, with one violating row.
func (db *DB) CheckInvariants(ctx context.Context) error {
	if db.skipInvariants {
		return nil
	}
	var errs []error
	for _, inv := range Invariants {
		if err := db.check(ctx, inv); err != nil {
			errs = append(errs, fmt.Errorf("invariant %q: %w", inv.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (db *DB) check(ctx context.Context, inv Invariant) error {
	// As text and in one simple query: any type prints, and a test that filled the statement cache does not matter.
	rows, err := db.Pool.Query(ctx, "SELECT v::text FROM ("+strings.TrimRight(db.SQL(inv.Query), "; \n")+") v LIMIT 1",
		pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return err
	}
	violations, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if len(violations) > 0 {
		return fmt.Errorf("violated by %s", violations[0])
	}
	return nil
}
