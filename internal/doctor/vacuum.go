package doctor

import (
	"context"
	"fmt"
)

// getFreezing has the ages of the schema's tables, or of their TOAST tables where those are older.
const getFreezing = `
SELECT c.relname::text, greatest(age(c.relfrozenxid), coalesce(age(t.relfrozenxid), 0))::bigint,
       greatest(mxid_age(c.relminmxid), coalesce(mxid_age(t.relminmxid), 0))::bigint,
       coalesce(age(t.relfrozenxid) > age(c.relfrozenxid), false),
       current_setting('autovacuum_freeze_max_age')::bigint, current_setting('autovacuum_multixact_freeze_max_age')::bigint,
       (SELECT age(d.datfrozenxid)::bigint FROM pg_database d WHERE d.datname = current_database())
FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind = 'r'
ORDER BY 2 DESC, 1`

// checkFreezing compares ages with those at which the server vacuums a table whatever its options say.
func (e *examiner) checkFreezing(ctx context.Context) error {
	tables, err := rows[struct {
		Name              string
		Age, MultixactAge int64
		Toast             bool
		Max, MultixactMax int64
		DatabaseAge       int64
	}](ctx, e, getFreezing)
	if err != nil || len(tables) == 0 {
		return err
	}
	listed, left := 0, 0
	for _, t := range tables {
		severity := OK
		switch {
		case t.Age >= t.Max || t.MultixactAge >= t.MultixactMax:
			severity = Warning
		case t.Age >= t.Max/10*8 || t.MultixactAge >= t.MultixactMax/10*8:
			severity = Notice
		}
		switch {
		case severity == OK:
		case listed == most:
			left++
		default:
			listed++
			what := t.Name
			if t.Toast {
				what = "the TOAST table of " + what
			}
			e.add(severity, e.sql(fmt.Sprintf("VACUUM (FREEZE) {schema}.%s; in a quiet hour", t.Name)),
				facts{"table": t.Name, "age_transactions": t.Age, "freeze_max_age": t.Max, "multixact_age": t.MultixactAge, "multixact_freeze_max_age": t.MultixactMax},
				"%s is %s old, and %s in multixacts: at %s, or %s, the server vacuums it whatever its options say",
				what, counted(t.Age, "transaction"), count(t.MultixactAge), count(t.Max), count(t.MultixactMax))
		}
	}
	e.addMore(Notice, left, "such tables")
	oldest := tables[0]
	if listed == 0 {
		e.add(OK, "", facts{"table": oldest.Name, "age_transactions": oldest.Age, "freeze_max_age": oldest.Max},
			"the oldest table, %s, is %s old; the server vacuums it at %s", oldest.Name, counted(oldest.Age, "transaction"), count(oldest.Max))
	}
	const half = 1 << 30 // of the transaction ids that there are, of which the last three million are not given out
	if oldest.DatabaseAge >= half {
		e.add(Error, "find the oldest tables (SELECT oid::regclass, age(relfrozenxid) FROM pg_class WHERE relkind IN ('r', 'm', 't') ORDER BY 2 DESC) and VACUUM them",
			facts{"age_transactions": oldest.DatabaseAge}, "the database is %s old: at 2,144 million it stops to write", counted(oldest.DatabaseAge, "transaction"))
	}
	return nil
}

// getVacuum estimates what the live rows of deliveries need from the statistics' widths; without those it is 0.
const getVacuum = `
SELECT current_setting('autovacuum')::bool, current_setting('track_counts')::bool, coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0),
       coalesce(extract(epoch FROM clock_timestamp() - greatest(s.last_autovacuum, s.last_vacuum))::float8, -1),
       pg_relation_size(c.oid),
       (coalesce(s.n_live_tup, 0) * (28 + (SELECT coalesce(sum(p.avg_width), 0) FROM pg_stats p
                                           WHERE p.schemaname = n.nspname AND p.tablename = c.relname)))::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE c.oid = '{schema}.deliveries'::regclass`

// checkVacuum looks at the one large table that needs vacuum.
func (e *examiner) checkVacuum(ctx context.Context) error {
	v, err := row[struct {
		Autovacuum, TrackCounts bool
		Live, Dead              int64
		SinceSeconds            float64
		Bytes, NeededBytes      int64
	}](ctx, e, getVacuum)
	if err != nil {
		return err
	}
	if !v.Autovacuum {
		e.add(Warning, "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf();", nil, "autovacuum is off: deliveries, and every other table that is updated, only grows")
	}
	if !v.TrackCounts {
		e.add(Warning, "ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf();", nil, "track_counts is off: autovacuum does not know what to do")
	}
	last := "it was never vacuumed"
	if v.SinceSeconds >= 0 {
		last = "it was vacuumed " + span(seconds(v.SinceSeconds)) + " ago"
	}
	f := facts{"live_rows": v.Live, "dead_rows": v.Dead, "bytes": v.Bytes, "needed_bytes": v.NeededBytes, "vacuumed_seconds_ago": v.SinceSeconds}
	text := fmt.Sprintf("deliveries has %s and %s dead, in %s; %s", counted(v.Live, "row"), count(v.Dead), size(v.Bytes), last)
	const bloated, worthIt = 4, 64 << 20
	switch {
	case v.Dead >= e.limits.Dead && v.Dead > v.Live/5:
		e.add(Warning, e.sql("see horizon and prepared for what holds vacuum back; then VACUUM {schema}.deliveries;"), f, "%s: vacuum does not keep up", text)
	case v.Bytes >= worthIt && v.NeededBytes > 0 && v.Bytes > bloated*v.NeededBytes:
		e.add(Notice, e.sql("the space will be used again; to give it back: VACUUM (FULL) {schema}.deliveries; which locks it meanwhile"), f,
			"%s, where %s would do", text, size(v.NeededBytes))
	default:
		e.add(OK, "", f, "%s", text)
	}
	return nil
}
