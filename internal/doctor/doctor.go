// Package doctor looks at a database and says what is wrong with it, or will be. It changes nothing.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Severity says how bad a finding is.
type Severity int

// From good to bad. A notice is worth knowing; a warning will hurt, or hurts already; with an error something does not
// work, or data are at risk.
const (
	OK Severity = iota
	Notice
	Warning
	Error
)

func (s Severity) String() string { return severityWords[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Finding is what one look at the database saw.
type Finding struct {
	Check    string         `json:"check"`
	Severity Severity       `json:"severity"`
	Summary  string         `json:"summary"`
	Remedy   string         `json:"remedy,omitempty"` // a command, SQL, or what to change
	Facts    map[string]any `json:"facts,omitempty"`  // the numbers in the summary, with their units in the names
}

// A Report is all that was found, in the order of the checks.
type Report struct {
	Severity      Severity  `json:"severity"` // the worst
	Schema        string    `json:"schema"`
	ServerVersion string    `json:"server_version,omitempty"`
	Findings      []Finding `json:"findings"`
	TookSeconds   float64   `json:"took_seconds"`
}

// Config says what to look at.
type Config struct {
	Database *pgx.ConnConfig // the address that the program uses
	Migrate  *pgx.ConnConfig // that for migrations; nil is the same
	Listen   *pgx.ConnConfig // that for LISTEN; nil is the same
	Schema   string
	Pool     int // connections that a server with these settings opens at most

	Limits Limits
	Now    func() time.Time // this machine's clock; nil is time.Now
}

// Limits say from where on something is worth a notice or a warning, and how long to look. Zero is the default.
type Limits struct {
	Check time.Duration // for one check: 10 s
	Total time.Duration // for all of them: 60 s
	Wake  time.Duration // for a notification to arrive: 2 s

	TransactionNotice  time.Duration // how long a transaction has been open: 1 minute
	TransactionWarning time.Duration // 10 minutes
	SlotXids           int64         // how far a replication slot holds the horizon back: 1 million transactions
	LagNotice          time.Duration // how long a message has been waiting: 5 minutes
	LagWarning         time.Duration // 1 hour
	LeaseOverdue       time.Duration // how long ago an ack deadline passed that nobody has looked at: 5 minutes
	LeaseHeld          time.Duration // how far away an ack deadline is: 1 hour
	DeadLetters        int64         // of a subscription: 1,000
	Deliveries         int64         // rows: 1 million
	Dead               int64         // rows that vacuum has not removed: 10,000
	SlotBytes          int64         // of a slot that waits: 1 GiB
	SlotAge            time.Duration // of the oldest message in a slot: 1 day
	Clock              time.Duration // by how much clocks differ: 2 s
}

func (l Limits) withDefaults() Limits {
	set := func(d *time.Duration, value time.Duration) { *d = cmp.Or(*d, value) }
	set(&l.Check, 10*time.Second)
	set(&l.Total, time.Minute)
	set(&l.Wake, 2*time.Second)
	set(&l.TransactionNotice, time.Minute)
	set(&l.TransactionWarning, 10*time.Minute)
	set(&l.LagNotice, 5*time.Minute)
	set(&l.LagWarning, time.Hour)
	set(&l.LeaseOverdue, 5*time.Minute)
	set(&l.LeaseHeld, time.Hour)
	set(&l.SlotAge, 24*time.Hour)
	set(&l.Clock, 2*time.Second)
	l.SlotXids = cmp.Or(l.SlotXids, 1_000_000)
	l.DeadLetters = cmp.Or(l.DeadLetters, 1000)
	l.Deliveries = cmp.Or(l.Deliveries, 1_000_000)
	l.Dead = cmp.Or(l.Dead, 10_000)
	l.SlotBytes = cmp.Or(l.SlotBytes, 1<<30)
	return l
}

// A check looks at one thing and adds what it sees. Its error means that it could not look at all of it.
type check struct {
	name  string
	needs need
	run   func(*examiner, context.Context) error
}

// need is what a check cannot do without.
type need int

const (
	needsServer need = iota
	needsSchema
	needsTables // of this version
)

// checks are in the order of the report. The first two find out what the others need.
var checks = []check{
	{"server", needsServer, (*examiner).checkServer},
	{"schema", needsServer, (*examiner).checkSchema},
	{"origin", needsTables, (*examiner).checkOrigin},
	{"functions", needsTables, (*examiner).checkFunctions},
	{"durability", needsServer, (*examiner).checkDurability},
	{"pooler", needsServer, (*examiner).checkPooler},
	{"listen", needsServer, (*examiner).checkListen},
	{"connections", needsServer, (*examiner).checkConnections},
	{"clock", needsServer, (*examiner).checkClock},
	{"visibility", needsServer, (*examiner).checkVisibility},
	{"horizon", needsServer, (*examiner).checkHorizon},
	{"writers", needsServer, (*examiner).checkWriters},
	{"prepared", needsServer, (*examiner).checkPrepared},
	{"replication", needsServer, (*examiner).checkReplication},
	{"timeouts", needsServer, (*examiner).checkTimeouts},
	{"lag", needsTables, (*examiner).checkLag},
	{"dead_letters", needsTables, (*examiner).checkDeadLetters},
	{"leases", needsTables, (*examiner).checkLeases},
	{"message_slots", needsTables, (*examiner).checkMessageSlots},
	{"lease_slots", needsTables, (*examiner).checkLeaseSlots},
	{"compression", needsTables, (*examiner).checkCompression},
	{"options", needsTables, (*examiner).checkOptions},
	{"freezing", needsSchema, (*examiner).checkFreezing},
	{"vacuum", needsTables, (*examiner).checkVacuum},
	{"deliveries", needsTables, (*examiner).checkDeliveries},
	{"orphans", needsTables, (*examiner).checkOrphans},
}

// An examiner is one examination.
type examiner struct {
	config  Config
	limits  Limits
	conn    *pgx.Conn // to the main address; closed when a check ran out of time
	server  server
	tables  bool // they are there, and this binary knows them
	schema  bool
	sharing sharing // what the check of the pooler saw
	found   []Finding
	current string // check
}

// Examine looks at everything and returns what it saw. It ends within the total limit, and soon after ctx ends.
func Examine(ctx context.Context, config Config) *Report {
	begun := time.Now()
	if config.Now == nil {
		config.Now = time.Now
	}
	e := &examiner{config: config, limits: config.Limits.withDefaults()}
	ctx, cancel := context.WithTimeout(ctx, e.limits.Total)
	defer cancel()
	e.examine(ctx)
	report := &Report{
		Schema:        config.Schema,
		ServerVersion: e.server.Version,
		Findings:      e.found,
		TookSeconds:   time.Since(begun).Seconds(),
	}
	for _, f := range e.found {
		report.Severity = max(report.Severity, f.Severity)
	}
	return report
}

func (e *examiner) examine(ctx context.Context) {
	e.current = "connection"
	if err := e.connect(ctx); err != nil {
		e.add(Error, "check FASTPUBSUB_DATABASE_URL, and that the server runs and lets this user in", nil,
			"the database cannot be reached: %v", err)
		return
	}
	defer func() { closeConn(e.conn) }()
	for i, c := range checks {
		if ctx.Err() != nil {
			e.current = "time"
			e.add(Warning, "run doctor again when the server is less busy", nil, "%d of %d checks were not done: out of time", len(checks)-i, len(checks))
			return
		}
		e.current = c.name
		if c.needs == needsSchema && !e.schema || c.needs == needsTables && !e.tables {
			continue // what the check of the schema found is the reason
		}
		e.run(ctx, c)
	}
}

// run runs a check within its time. One that fails is a finding, and the next has a new connection if need be.
func (e *examiner) run(ctx context.Context, c check) {
	check, cancel := context.WithTimeout(ctx, e.limits.Check)
	defer cancel()
	err := e.connect(check)
	if err == nil {
		err = c.run(e, check)
	}
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
	case errors.As(err, &pgErr) && pgErr.Code == "42501": // insufficient_privilege
		e.add(Warning, e.grants(), nil, "could not be looked at: %s", pgErr.Message)
	case check.Err() != nil:
		e.add(Warning, busyRemedy, nil, "could not be looked at within %s", span(e.limits.Check))
	default:
		e.add(Warning, "", nil, "could not be looked at: %v", err)
	}
}

const busyRemedy = "see what the server is busy with: SELECT pid, state, wait_event, query FROM pg_stat_activity"

// grants lets the role read the schema.
func (e *examiner) grants() string {
	schema, role := e.sql("{schema}"), pgx.Identifier{e.server.User}.Sanitize()
	return fmt.Sprintf("GRANT USAGE ON SCHEMA %[1]s TO %[2]s; GRANT SELECT ON ALL TABLES IN SCHEMA %[1]s TO %[2]s; GRANT SELECT ON ALL SEQUENCES IN SCHEMA %[1]s TO %[2]s;",
		schema, role)
}

// connect makes the connection, unless it is open.
func (e *examiner) connect(ctx context.Context) (err error) {
	if e.conn != nil && !e.conn.IsClosed() {
		return nil
	}
	e.conn, err = connect(ctx, e.config.Database)
	return err
}

// connect opens a connection that works behind every pooler: it prepares nothing.
func connect(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	config = config.Copy()
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.StatementCacheCapacity, config.DescriptionCacheCapacity = 0, 0
	return pgx.ConnectConfig(ctx, config)
}

// closeConn closes a connection, which may be nil, whether or not there is time left.
func closeConn(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nothing depends on it
}

// facts are the numbers of a finding.
type facts = map[string]any

// add adds a finding of the current check.
func (e *examiner) add(severity Severity, remedy string, f facts, format string, args ...any) {
	e.found = append(e.found, Finding{e.current, severity, fmt.Sprintf(format, args...), remedy, f})
}

// sql fills in the quoted name of the schema.
func (e *examiner) sql(text string) string {
	return strings.ReplaceAll(text, "{schema}", pgx.Identifier{e.config.Schema}.Sanitize())
}

// rows runs a query on the examiner's connection, with a struct for each row.
func rows[T any](ctx context.Context, e *examiner, query string, args ...any) ([]T, error) {
	r, _ := e.conn.Query(ctx, e.sql(query), args...) // CollectRows reports Query's error
	return pgx.CollectRows(r, pgx.RowToStructByPos[T])
}

// row is rows for exactly one.
func row[T any](ctx context.Context, e *examiner, query string, args ...any) (T, error) {
	r, _ := e.conn.Query(ctx, e.sql(query), args...) // CollectExactlyOneRow reports Query's error
	return pgx.CollectExactlyOneRow(r, pgx.RowToStructByPos[T])
}

// useIndexes is for the time of a transaction. The ring has no statistics, and a plan that reads all of it takes for ever.
const useIndexes = `
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true)`

// indexed is rows for a query that looks into large tables, by their indexes. It is one round trip, and one transaction,
// which every pooler lets through.
func indexed[T any](ctx context.Context, e *examiner, query string, args ...any) (all []T, err error) {
	batch := &pgx.Batch{}
	batch.Queue(useIndexes)
	batch.Queue(e.sql(query), args...).Query(func(r pgx.Rows) error {
		all, err = pgx.CollectRows(r, pgx.RowToStructByPos[T])
		return err
	})
	return all, e.conn.SendBatch(ctx, batch).Close()
}

// most is how many findings of one kind are listed; the others are counted.
const most = 5

// addMore says how many findings of a check were left out.
func (e *examiner) addMore(severity Severity, n int, what string) {
	if n > 0 {
		e.add(severity, "", facts{"count": n}, "and %s more %s", count(n), what)
	}
}
