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
SELECT sub, first_xid, first_seq FROM (
    SELECT sub, first_xid, first_seq, last_xid, last_seq,
           lead(first_xid) OVER w AS next_xid, lead(first_seq) OVER w AS next_seq
    FROM {schema}.leases WHERE kind = 0
    WINDOW w AS (PARTITION BY sub ORDER BY first_xid, first_seq)
) l
WHERE (next_xid, next_seq) <= (last_xid, last_seq) OR (last_xid, last_seq) < (first_xid, first_seq)`},
	{"no message is leased twice", `
SELECT sub, lo FROM (
    SELECT sub, lower(r) AS lo,
           max(upper(r)) OVER (PARTITION BY sub ORDER BY lower(r) ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS upto
    FROM {schema}.leases, unnest(remaining) r
) l
WHERE lo < upto`},
	{"a lease of a late transaction is of that one alone", `
SELECT sub, first_xid, last_xid FROM {schema}.leases WHERE kind = 1 AND first_xid <> last_xid`},
	{"no message is both leased and in deliveries", `
SELECT sub, lo FROM (
    SELECT sub, lower(r) AS lo,
           max(upper(r)) OVER (PARTITION BY sub ORDER BY lower(r) ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS upto
    FROM (SELECT sub, r FROM {schema}.leases, unnest(remaining) r
          UNION ALL SELECT sub, int8range(seq, seq + 1) FROM {schema}.deliveries) all_of_them
) l
WHERE lo < upto`},
	{"no message is both in deliveries and beyond the cursor", `
SELECT d.sub, d.xid, d.seq FROM {schema}.deliveries d
WHERE (d.xid, d.seq) > (SELECT c.xid, c.seq FROM {schema}.cursors c WHERE c.sub = d.sub ORDER BY c.gen DESC LIMIT 1)
  AND EXISTS (SELECT FROM {schema}.messages m WHERE m.xid = d.xid AND d.seq >= m.base AND d.seq < m.base + m.n)`}, // or it came from another cluster
	{"attempts are within the limit", `
SELECT d.sub, d.xid, d.seq, d.attempts FROM {schema}.deliveries d JOIN {schema}.subscriptions s ON s.num = d.sub
WHERE d.attempts < 0 OR d.attempts > s.max_delivery_attempts
   OR d.state IN ('available', 'expired') AND d.attempts >= s.max_delivery_attempts
   OR d.state IN ('leased', 'dead', 'expired') AND d.attempts = 0`},
	{"what is dead has a time of death, and nothing else has", `
SELECT sub, xid, seq FROM {schema}.deliveries WHERE (state = 'dead') <> (dead_at IS NOT NULL)`},
	{"a lease that was swept is empty or held", `
SELECT l.sub, l.first_xid, l.first_seq FROM {schema}.leases l JOIN {schema}.subscriptions s ON s.num = l.sub
WHERE NOT isempty(l.remaining)
  AND l.deadline <= (SELECT c.swept_to FROM {schema}.cursors c WHERE c.sub = l.sub ORDER BY c.gen DESC LIMIT 1)
  AND NOT EXISTS (SELECT FROM {schema}.held_leases h
                  WHERE h.sub = l.sub AND h.kind = l.kind AND h.first_xid = l.first_xid AND h.first_seq = l.first_seq)`},
	{"no lease has acked a negative number", `SELECT sub, first_xid, first_seq FROM {schema}.leases WHERE acked < 0`},
	{"what a cursor counts never goes down", `
SELECT a.sub, a.gen FROM {schema}.cursors a JOIN {schema}.cursors b ON b.sub = a.sub AND b.gen = a.gen + 1
WHERE b.acked < a.acked OR b.swept_to < a.swept_to`},
	{"a subscription has one cursor of a generation", `
SELECT sub, gen FROM {schema}.cursors GROUP BY sub, gen HAVING count(*) > 1`},
	{"a cursor never goes back", `
SELECT a.sub, a.gen FROM {schema}.cursors a JOIN {schema}.cursors b ON b.sub = a.sub AND b.gen = a.gen + 1
WHERE (b.xid, b.seq) < (a.xid, a.seq)`},
	{"late transactions ascend, and lie behind the cursor", `
SELECT sub, gen FROM {schema}.cursors
WHERE cardinality(late_xids) <> cardinality(late_seqs)
   OR late_xids <> ARRAY(SELECT DISTINCT x FROM unnest(late_xids) x ORDER BY x) OR xid < ANY (late_xids)`},
	{"a lease of the main scan lies behind the cursor", `
SELECT l.sub, l.first_xid, l.first_seq FROM {schema}.leases l
WHERE l.kind = 0 AND (l.last_xid, l.last_seq) > (
    SELECT c.xid, c.seq FROM {schema}.cursors c WHERE c.sub = l.sub ORDER BY c.gen DESC LIMIT 1)`},
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
