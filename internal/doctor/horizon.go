package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A session is one with a transaction that others feel.
type session struct {
	PID         int
	Database    string
	User        string
	Application string
	State       string
	SnapshotAge int64 // in transactions; 0 is none
	WriteAge    int64 // of its own transaction id
	OpenSeconds float64
	IdleSeconds float64 // since it last did something, if it is idle in its transaction
}

// getSessions finds snapshots that hold back vacuum in this database (those of a standby do in all), and transactions
// that write, which count in the whole cluster. Autovacuum's own do neither; parallel
// workers are seen with their leader.
const getSessions = `
SELECT a.pid, coalesce(a.datname::text, '-'), coalesce(a.usename::text, '-'), coalesce(nullif(a.application_name, ''), '-'),
       coalesce(a.state, a.backend_type), coalesce(age(a.backend_xmin)::bigint, 0), coalesce(age(a.backend_xid)::bigint, 0),
       coalesce(extract(epoch FROM clock_timestamp() - a.xact_start)::float8, 0),
       CASE WHEN a.state LIKE 'idle in transaction%' THEN extract(epoch FROM clock_timestamp() - a.state_change)::float8 ELSE 0 END
FROM pg_stat_activity a
WHERE a.pid <> pg_backend_pid() AND a.backend_type NOT IN ('autovacuum worker', 'parallel worker')
  AND (a.backend_xid IS NOT NULL
       OR a.backend_xmin IS NOT NULL AND (a.datname = current_database() OR a.backend_type = 'walsender'))
ORDER BY a.xact_start NULLS FIRST, a.pid`

func (s *session) open() time.Duration { return seconds(s.OpenSeconds) }

func (s *session) String() string {
	text := fmt.Sprintf("pid %d (application %s, user %s, database %s, %s", s.PID, s.Application, s.User, s.Database, s.State)
	if s.IdleSeconds > 0 {
		text += " for " + span(seconds(s.IdleSeconds))
	}
	return text + ")"
}

func (s *session) facts() facts {
	return facts{"pid": s.PID, "application": s.Application, "user": s.User, "database": s.Database, "state": s.State, "open_seconds": s.OpenSeconds,
		"idle_seconds": s.IdleSeconds, "snapshot_age_transactions": s.SnapshotAge, "write_age_transactions": s.WriteAge}
}

func (s *session) terminate() string {
	return fmt.Sprintf("end it where it was begun; or consider SELECT pg_terminate_backend(%d), which rolls it back", s.PID)
}

// openSeverity judges how long something has been open.
func (e *examiner) openSeverity(open time.Duration) Severity {
	switch {
	case open >= e.limits.TransactionWarning:
		return Warning
	case open >= e.limits.TransactionNotice:
		return Notice
	}
	return OK
}

// checkHorizon looks for old snapshots of sessions.
func (e *examiner) checkHorizon(ctx context.Context) error {
	sessions, err := rows[session](ctx, e, getSessions)
	if err != nil {
		return err
	}
	var oldest *session
	listed, left := 0, 0
	for i := range sessions {
		s := &sessions[i]
		if s.SnapshotAge == 0 && s.WriteAge == 0 {
			continue
		}
		if oldest == nil || max(s.SnapshotAge, s.WriteAge) > max(oldest.SnapshotAge, oldest.WriteAge) {
			oldest = s
		}
		severity := e.openSeverity(s.open())
		if s.State == "walsender" || s.OpenSeconds == 0 { // hot_standby_feedback: a standby's query
			severity = OK
			if s.SnapshotAge >= e.limits.SlotXids {
				severity = Warning
			}
		}
		switch {
		case severity == OK:
		case listed == most:
			left++
		default:
			listed++
			e.add(severity, s.terminate(), s.facts(), "%s has had a transaction open for %s, which holds the horizon %s back: until it ends vacuum cannot remove what dies, and slots are not truncated",
				s, span(s.open()), counted(max(s.SnapshotAge, s.WriteAge), "transaction"))
		}
	}
	e.addMore(Notice, left, "such sessions")
	switch {
	case listed > 0:
	case oldest == nil:
		e.add(OK, "", nil, "no session holds the horizon back")
	default:
		e.add(OK, "", oldest.facts(), "the oldest snapshot is %s and %s old, that of %s",
			counted(max(oldest.SnapshotAge, oldest.WriteAge), "transaction"), span(oldest.open()), oldest)
	}
	return nil
}

// checkWriters looks for transactions that have written and stay open.
func (e *examiner) checkWriters(ctx context.Context) error {
	sessions, err := rows[session](ctx, e, getSessions)
	if err != nil {
		return err
	}
	writers, listed, left := 0, 0, 0
	for i := range sessions {
		s := &sessions[i]
		if s.WriteAge == 0 {
			continue
		}
		writers++
		severity := e.openSeverity(s.open())
		switch {
		case severity == OK:
		case listed == most:
			left++
		default:
			listed++
			e.add(severity, s.terminate(), s.facts(), "%s has a transaction open for %s that has written: what it published waits for its end, what it acked or nacked is locked, and every subscription that passes it keeps it in mind",
				s, span(s.open()))
		}
	}
	e.addMore(Notice, left, "such sessions")
	if listed == 0 {
		e.add(OK, "", facts{"writers": writers}, "%s at the moment, none for long", verb(writers, "transaction", "writes", "write"))
	}
	return nil
}

const getPrepared = `
SELECT p.gid, p.owner::text, p.database::text, age(p.transaction)::bigint, extract(epoch FROM clock_timestamp() - p.prepared)::float8
FROM pg_prepared_xacts p ORDER BY p.prepared`

// checkPrepared looks for prepared transactions, which outlive their session and even the server.
func (e *examiner) checkPrepared(ctx context.Context) error {
	all, err := rows[struct {
		GID, Owner, Database string
		Age                  int64
		Seconds              float64
	}](ctx, e, getPrepared)
	if err != nil {
		return err
	}
	listed, left := 0, 0
	for _, p := range all {
		severity := e.openSeverity(seconds(p.Seconds))
		switch {
		case severity == OK:
		case listed == most:
			left++
		default:
			listed++
			gid := literal(p.GID)
			e.add(severity, fmt.Sprintf("in database %s: COMMIT PREPARED %s; or ROLLBACK PREPARED %s; as its transaction manager says", p.Database, gid, gid),
				facts{"gid": p.GID, "owner": p.Owner, "database": p.Database, "age_transactions": p.Age, "age_seconds": p.Seconds},
				"the prepared transaction %s (owner %s, database %s) has been waiting for %s, and holds the horizon %s back", gid, p.Owner, p.Database,
				span(seconds(p.Seconds)), counted(p.Age, "transaction"))
		}
	}
	e.addMore(Notice, left, "prepared transactions")
	if listed == 0 {
		e.add(OK, "", facts{"prepared": len(all)}, "%s, none for long", counted(len(all), "prepared transaction"))
	}
	return nil
}

const getReplicationSlots = `
SELECT s.slot_name::text, s.slot_type, s.active, coalesce(age(s.xmin)::bigint, 0), coalesce(age(s.catalog_xmin)::bigint, 0),
       coalesce(s.wal_status, '-'),
       CASE WHEN pg_is_in_recovery() THEN 0 ELSE coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0)::bigint END
FROM pg_replication_slots s WHERE NOT s.temporary ORDER BY s.slot_name`

// checkReplication looks for slots that hold back vacuum, or keep WAL that nobody fetches.
func (e *examiner) checkReplication(ctx context.Context) error {
	slots, err := rows[struct {
		Name, Type        string
		Active            bool
		Xmin, CatalogXmin int64
		WALStatus         string
		WALBytes          int64
	}](ctx, e, getReplicationSlots)
	if err != nil {
		return err
	}
	wrong := 0
	for _, s := range slots {
		f := facts{"slot": s.Name, "type": s.Type, "active": s.Active, "xmin_age_transactions": s.Xmin, "catalog_xmin_age_transactions": s.CatalogXmin,
			"wal_status": s.WALStatus, "wal_bytes": s.WALBytes}
		drop := fmt.Sprintf("bring its consumer back; or, if there is none any more, SELECT pg_drop_replication_slot(%s);", literal(s.Name))
		switch {
		case !s.Active:
			e.add(Warning, drop, f, "nobody uses the %s replication slot %s, which keeps %s of WAL on disk and holds the horizon %s back, that of the catalogs %s",
				s.Type, literal(s.Name), size(s.WALBytes), counted(s.Xmin, "transaction"), counted(s.CatalogXmin, "transaction"))
		case max(s.Xmin, s.CatalogXmin) >= e.limits.SlotXids:
			e.add(Warning, "see what holds up its consumer", f, "the %s replication slot %s holds the horizon %s back, that of the catalogs %s, and keeps %s of WAL",
				s.Type, literal(s.Name), counted(s.Xmin, "transaction"), counted(s.CatalogXmin, "transaction"), size(s.WALBytes))
		default:
			continue
		}
		wrong++
	}
	if wrong == 0 {
		e.add(OK, "", facts{"slots": len(slots)}, "%s, all in use and up to date", counted(len(slots), "replication slot"))
	}
	return nil
}

const getTimeouts = `
SELECT extract(epoch FROM current_setting('idle_in_transaction_session_timeout')::interval)::float8,
       extract(epoch FROM current_setting('statement_timeout')::interval)::float8`

// checkTimeouts looks at what this role's sessions get.
func (e *examiner) checkTimeouts(ctx context.Context) error {
	t, err := row[struct{ IdleInTransaction, Statement float64 }](ctx, e, getTimeouts)
	if err != nil {
		return err
	}
	f := facts{"idle_in_transaction_session_timeout_seconds": t.IdleInTransaction, "statement_timeout_seconds": t.Statement}
	if t.IdleInTransaction == 0 {
		e.add(Notice, fmt.Sprintf("ALTER ROLE %s SET idle_in_transaction_session_timeout = '10min';", pgx.Identifier{e.server.User}.Sanitize()), f,
			"idle_in_transaction_session_timeout is off: a transaction that a program forgot stays open for ever, and what it acked or nacked stays locked")
	} else {
		e.add(OK, "", f, "idle_in_transaction_session_timeout is %s", span(seconds(t.IdleInTransaction)))
	}
	if t.Statement > 0 && t.Statement < 2 {
		e.add(Warning, fmt.Sprintf("ALTER ROLE %s SET statement_timeout = '30s';", pgx.Identifier{e.server.User}.Sanitize()), f,
			"statement_timeout is %s: consumers that wait a second for a subscription's lock, and large publishes, may be cut off", span(seconds(t.Statement)))
	}
	return nil
}
