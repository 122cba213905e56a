package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// sharing is how an address gives its clients sessions of the server.
type sharing struct {
	pooler     bool // something between: the process that answers is not the one that let us in
	shared     bool // clients share sessions: transaction or statement mode
	statements bool // there are no transactions: statement mode
	prepares   bool // in shared mode: a prepared statement survives another session, since the pooler repeats it
}

func (s sharing) String() string {
	switch {
	case s.statements:
		return "a pooler in statement mode"
	case s.shared:
		return "a pooler in transaction mode"
	case s.pooler:
		return "a pooler in session mode"
	}
	return "the server itself"
}

const backendPID = `SELECT pg_backend_pid()`

// lookAtSharing connects twice. While the second client is in a transaction, the first asks again who serves it: behind a
// pooler that shares sessions that is somebody else than before, or the second has got the first one's.
func lookAtSharing(ctx context.Context, config *pgx.ConnConfig) (s sharing, err error) {
	first, err := connect(ctx, config)
	if err != nil {
		return s, err
	}
	defer closeConn(first)
	var before int
	if err := first.QueryRow(ctx, backendPID).Scan(&before); err != nil {
		return s, err
	}
	s.pooler = uint32(before) != first.PgConn().PID()
	if !s.pooler {
		return s, nil
	}
	name := "fastpubsub_doctor_" + rand.Text()
	_, prepareErr := first.Prepare(ctx, name, `SELECT 1`)

	// Poolers hand out the session that was used last, or that was not used for longest: with a few others in a
	// transaction the first one's is among theirs. If another has to wait, and the first has not, sessions are not shared.
	for range 3 {
		tx, theirs, end, err := beginAnother(ctx, config)
		var pgErr *pgconn.PgError
		switch {
		case err == nil:
			defer end()
		case errors.As(err, &pgErr) && pgErr.Code == "08P01": // protocol_violation: PgBouncer's answer to BEGIN
			s.shared, s.statements = true, true
			return s, nil
		case pgErr == nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return s, nil
		default:
			return s, err
		}
		if theirs != before {
			continue
		}
		s.shared = true
		// The first has another session now, or waits for one.
		brief, cancel := context.WithTimeout(ctx, pooledWait)
		defer cancel()
		var one int
		s.prepares = prepareErr == nil && first.QueryRow(brief, name).Scan(&one) == nil
		_, _ = tx.Exec(ctx, "DEALLOCATE "+pgx.Identifier{name}.Sanitize()) // an error if the pooler gave it another name
		return s, nil
	}
	return s, nil
}

// pooledWait is how long a client waits for a session of a pooler's.
const pooledWait = time.Second

// beginAnother begins a transaction on a connection of its own, and returns who serves it. Call end after it.
func beginAnother(ctx context.Context, config *pgx.ConnConfig) (tx pgx.Tx, pid int, end func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, pooledWait)
	defer cancel()
	conn, err := connect(ctx, config)
	if err != nil {
		return nil, 0, nil, err
	}
	tx, err = conn.Begin(ctx)
	if err == nil {
		err = tx.QueryRow(ctx, backendPID).Scan(&pid)
	}
	if err != nil {
		closeConn(conn)
		return nil, 0, nil, err
	}
	return tx, pid, func() {
		rollBack(tx)
		closeConn(conn)
	}, nil
}

// rollBack ends a transaction before its connection is closed, so that the pooler can keep the session.
func rollBack(tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = tx.Rollback(ctx)
}

const queryMode = "default_query_exec_mode=exec"

// checkPooler looks at what is between this program and the server.
func (e *examiner) checkPooler(ctx context.Context) (err error) {
	if e.sharing, err = lookAtSharing(ctx, e.config.Database); err != nil {
		return err
	}
	s := e.sharing
	f := facts{"pooler": s.pooler, "shared_sessions": s.shared, "prepared_statements": !s.shared || s.prepares}
	mode := e.config.Database.DefaultQueryExecMode
	switch {
	case s.statements:
		e.add(Error, "set pool_mode = transaction in the pooler", f, "FASTPUBSUB_DATABASE_URL leads to %s, which has no transactions", s)
		return nil
	case s.shared && !modeWorks(mode, s):
		e.add(Error, fmt.Sprintf("add %s to FASTPUBSUB_DATABASE_URL, or set max_prepared_statements in PgBouncer 1.21 or newer", queryMode), f,
			"FASTPUBSUB_DATABASE_URL leads to %s, and the query mode %s needs a session of its own", s, strings.ReplaceAll(mode.String(), " ", "_"))
	default:
		e.add(OK, "", f, "FASTPUBSUB_DATABASE_URL leads to %s", s)
	}
	return e.checkMigrateAddress(ctx)
}

// modeWorks says whether pgx's query mode works where clients share sessions.
func modeWorks(mode pgx.QueryExecMode, s sharing) bool {
	switch mode {
	case pgx.QueryExecModeCacheStatement:
		return s.prepares
	case pgx.QueryExecModeDescribeExec: // its two round trips may reach two sessions
		return false
	}
	return true
}

func (e *examiner) checkMigrateAddress(ctx context.Context) error {
	const remedy = "set FASTPUBSUB_MIGRATE_DATABASE_URL to the server's own address"
	if e.config.Migrate == nil {
		if e.sharing.shared {
			e.add(Warning, remedy, nil, "db-migrate locks by session, which this address has not: several at once may disturb each other")
		}
		return nil
	}
	s, err := lookAtSharing(ctx, e.config.Migrate)
	switch {
	case err != nil:
		e.add(Warning, remedy, nil, "FASTPUBSUB_MIGRATE_DATABASE_URL cannot be reached: %v", err)
	case s.shared:
		e.add(Warning, remedy, nil, "FASTPUBSUB_MIGRATE_DATABASE_URL leads to %s: db-migrate locks by session", s)
	default:
		e.add(OK, "", nil, "FASTPUBSUB_MIGRATE_DATABASE_URL leads to %s", s)
	}
	return nil
}

// checkListen listens on one connection and notifies on another. It listens on no session that clients share, since it
// could not end that.
func (e *examiner) checkListen(ctx context.Context) error {
	variable, config, s := "FASTPUBSUB_DATABASE_URL", e.config.Database, e.sharing
	if e.config.Listen != nil {
		variable, config = "FASTPUBSUB_LISTEN_DATABASE_URL", e.config.Listen
		var err error
		if s, err = lookAtSharing(ctx, config); err != nil {
			e.add(Warning, "set FASTPUBSUB_LISTEN_DATABASE_URL to the server's own address", nil, "FASTPUBSUB_LISTEN_DATABASE_URL cannot be reached: %v", err)
			return nil
		}
	}
	if s.shared {
		e.add(Warning, "set FASTPUBSUB_LISTEN_DATABASE_URL to the server's own address", nil,
			"%s leads to %s: notifications cannot arrive there, so consumers that wait learn of messages by polling", variable, s)
		return nil
	}
	listener, err := connect(ctx, config)
	if err != nil {
		return err
	}
	defer closeConn(listener)
	channel := "fastpubsub_doctor_" + strings.ToLower(rand.Text())
	if _, err := listener.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	begun := time.Now()
	if _, err := e.conn.Exec(ctx, `SELECT pg_notify($1, '')`, channel); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, e.limits.Wake)
	defer cancel()
	_, err = listener.WaitForNotification(wait)
	switch {
	case err == nil:
		e.add(OK, "", facts{"seconds": time.Since(begun).Seconds()}, "a notification through %s arrived after %s", variable, span(time.Since(begun)))
	case wait.Err() != nil && ctx.Err() == nil:
		e.add(Warning, "set FASTPUBSUB_LISTEN_DATABASE_URL to an address of the same database on the same server", nil,
			"a notification through %s did not arrive within %s: consumers that wait learn of messages by polling", variable, span(e.limits.Wake))
	default:
		return err
	}
	return nil
}
