package doctor

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// server is what the checks have to know of it.
type server struct {
	Number   int
	Version  string
	Encoding string
	User     string
	Database string
	Standby  bool
	Super    bool
	SeesAll  bool // sessions of other roles
}

// The majors that the tests run on.
const oldestMajor, newestMajor = 14, 18

const getServer = `
SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_setting('server_encoding'),
       current_user::text, current_database()::text, pg_is_in_recovery(), r.rolsuper,
       r.rolsuper OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
FROM pg_roles r WHERE r.rolname = current_user`

func (e *examiner) checkServer(ctx context.Context) (err error) {
	if e.server, err = row[server](ctx, e, getServer); err != nil {
		return err
	}
	s := &e.server
	major := s.Number / 10000
	switch {
	case major < oldestMajor:
		e.add(Error, fmt.Sprintf("upgrade the server to PostgreSQL %d or newer", oldestMajor), facts{"version": s.Number},
			"PostgreSQL %s is too old", s.Version)
	case major > newestMajor:
		e.add(Notice, "", facts{"version": s.Number}, "PostgreSQL %s is newer than what this binary was tested with, %d to %d", s.Version, oldestMajor, newestMajor)
	default:
		e.add(OK, "", facts{"version": s.Number}, "PostgreSQL %s, database %q, user %q", s.Version, s.Database, s.User)
	}
	if s.Encoding != "UTF8" {
		e.add(Error, "CREATE DATABASE fastpubsub ENCODING 'UTF8' TEMPLATE template0, and use that", facts{"encoding": s.Encoding},
			"the database's encoding is %s: payloads need UTF8", s.Encoding)
	}
	if s.Standby {
		e.add(Error, "set FASTPUBSUB_DATABASE_URL to the primary's address", nil, "this is a standby: nothing can be published or consumed")
	}
	return nil
}

const getDurability = `
SELECT current_setting('fsync')::bool, current_setting('full_page_writes')::bool, current_setting('synchronous_commit')`

func (e *examiner) checkDurability(ctx context.Context) error {
	s, err := row[struct {
		Fsync, FullPageWrites bool
		SynchronousCommit     string
	}](ctx, e, getDurability)
	if err != nil {
		return err
	}
	if !s.Fsync {
		e.add(Error, "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();", nil, "fsync is off: a crash of the machine destroys the database")
	}
	if !s.FullPageWrites {
		e.add(Error, "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();", nil,
			"full_page_writes is off: a crash of the machine may destroy the database")
	}
	if s.SynchronousCommit == "off" {
		e.add(Warning, fmt.Sprintf("ALTER ROLE %s SET synchronous_commit = on;", pgx.Identifier{e.server.User}.Sanitize()), nil,
			"synchronous_commit is off: a crash forgets the last acks and settings; publishing is durable all the same")
	}
	if s.Fsync && s.FullPageWrites && s.SynchronousCommit != "off" {
		e.add(OK, "", nil, "fsync and full_page_writes are on, synchronous_commit is %s", s.SynchronousCommit)
	}
	return nil
}

// numbackends counts sessions whoever asks; pg_stat_activity hides what those of other roles are.
const getConnections = `
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT coalesce(sum(d.numbackends), 0)::int FROM pg_stat_database d),
       (SELECT count(*)::int FROM pg_stat_activity a WHERE a.usename = current_user AND a.application_name = $1),
       r.rolconnlimit, d.datconnlimit
FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()`

func (e *examiner) checkConnections(ctx context.Context) error {
	c, err := row[struct{ Max, Reserved, Used, Ours, RoleLimit, DatabaseLimit int }](ctx, e, getConnections,
		e.config.Database.RuntimeParams["application_name"])
	if err != nil {
		return err
	}
	c.Ours = max(0, c.Ours-1) // but for this one
	available := c.Max - c.Reserved
	for _, limit := range []int{c.RoleLimit, c.DatabaseLimit} {
		if limit >= 0 && !e.server.Super {
			available = min(available, limit)
		}
	}
	free := max(0, available-c.Used)
	f := facts{"max_connections": c.Max, "reserved": c.Reserved, "available": available, "in_use": c.Used, "of_this_application": c.Ours, "pool": e.config.Pool}
	text := fmt.Sprintf("%s of %s connections are in use (max_connections %s, %s reserved); a server with these settings opens up to %s, %s are open",
		count(c.Used), count(available), count(c.Max), count(c.Reserved), count(e.config.Pool), count(c.Ours))
	switch {
	case e.sharing.shared: // the pool is the pooler's matter
		e.add(OK, "", f, "%s of %s connections are in use; the pooler decides how many it opens", count(c.Used), count(available))
	case e.config.Pool > available:
		e.add(Warning, "lower FASTPUBSUB_DATABASE_POOL_SIZE and FASTPUBSUB_DATABASE_MAX_OVERFLOW, or raise max_connections or the role's or database's CONNECTION LIMIT", f, "%s", text)
	case free*10 < available:
		e.add(Warning, "lower the pools of the programs that use this server, put a pooler between, or raise max_connections", f, "%s", text)
	case free < e.config.Pool-c.Ours:
		e.add(Notice, "lower FASTPUBSUB_DATABASE_POOL_SIZE and FASTPUBSUB_DATABASE_MAX_OVERFLOW, or raise max_connections", f, "%s", text)
	default:
		e.add(OK, "", f, "%s", text)
	}
	return nil
}

// checkClock compares this machine's clock with the server's, in the quickest of three tries.
func (e *examiner) checkClock(ctx context.Context) error {
	quickest, difference := time.Duration(math.MaxInt64), time.Duration(0)
	for range 3 {
		var there time.Time
		begun, before := time.Now(), e.config.Now()
		if err := e.conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&there); err != nil {
			return err
		}
		if took := time.Since(begun); took < quickest {
			quickest, difference = took, there.Sub(before.Add(took/2))
		}
	}
	f := facts{"difference_seconds": difference.Seconds(), "round_trip_seconds": quickest.Seconds()}
	const text = "the server's clock is %s %s this machine's, the round trip took %s"
	where := "ahead of"
	if difference < 0 {
		where = "behind"
	}
	switch off := difference.Abs() - quickest/2; {
	case off >= 15*e.limits.Clock:
		e.add(Warning, "run NTP (chrony, systemd-timesyncd) on both machines", f, text, span(difference.Abs()), where, span(quickest))
	case off >= e.limits.Clock:
		e.add(Notice, "run NTP (chrony, systemd-timesyncd) on both machines", f, text, span(difference.Abs()), where, span(quickest))
	default:
		e.add(OK, "", f, text, span(difference.Abs()), where, span(quickest))
	}
	return nil
}

// checkVisibility says what this role is not shown.
func (e *examiner) checkVisibility(context.Context) error {
	if e.server.SeesAll {
		return nil
	}
	e.add(Notice, fmt.Sprintf("GRANT pg_read_all_stats TO %s;", pgx.Identifier{e.server.User}.Sanitize()), nil,
		"user %q does not see what sessions of other roles do: the checks horizon and writers look at its own only", e.server.User)
	return nil
}

const getCompression = `
SELECT (SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'),
       ARRAY(SELECT c.relname::text FROM pg_inherits i
             JOIN pg_class c ON c.oid = i.inhrelid
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'payloads'
             WHERE i.inhparent = '{schema}.messages'::regclass AND a.attcompression <> 'l'
             ORDER BY c.relname)`

// checkCompression looks at how the log's payloads are compressed.
func (e *examiner) checkCompression(ctx context.Context) error {
	c, err := row[struct {
		Has     bool
		Without []string
	}](ctx, e, getCompression)
	if err != nil {
		return err
	}
	switch {
	case !c.Has:
		e.add(Notice, "use a server that is built with lz4, as those of most distributions are", nil,
			"the server is built without lz4: payloads are compressed with pglz, which takes three times the CPU time")
	case len(c.Without) > 0:
		remedy := ""
		for _, table := range c.Without {
			remedy += e.sql(fmt.Sprintf("ALTER TABLE {schema}.%s ALTER payloads SET COMPRESSION lz4; ", table))
		}
		e.add(Notice, remedy[:len(remedy)-1], facts{"slots": c.Without}, "slots of the log (%s) are without lz4, which the server has: payloads are compressed with pglz, which takes three times the CPU time",
			strings.Join(c.Without, ", "))
	default:
		e.add(OK, "", nil, "payloads are compressed with lz4")
	}
	return nil
}
