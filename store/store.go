// Package store holds the statements that fastpubsub runs and the rows that they return. What they mean is the root
// package's business.
package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Version is the schema version that this code was written for: the number of the newest file in migrations.
const Version = 7

// These errors have one identity for the whole module; the root package exports them again.
var (
	ErrNotFound       = errors.New("not found")
	ErrExists         = errors.New("already exists")
	ErrBusy           = errors.New("busy: other calls held what it needs for too long")
	ErrSchemaOutdated = errors.New("database schema is out of date: run db-migrate")
	ErrBinaryOutdated = errors.New("database schema is newer than this binary can serve: use a newer one")
	ErrRestored       = errors.New("messages were copied here from another database: run fastpubsub repair")
)

// ErrSchemaName means that a schema name was not made of 1 to 63 lower-case letters, digits and underscores, the first
// no digit. Names that begin with pg_ are Postgres's own.
var ErrSchemaName = errors.New("schema name must match ^[a-z_][a-z0-9_]{0,62}$ and not begin with pg_")

var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// CheckSchemaName returns ErrSchemaName for a name that cannot be used.
func CheckSchemaName(schema string) error {
	if !schemaName.MatchString(schema) || strings.HasPrefix(schema, "pg_") {
		return ErrSchemaName
	}
	return nil
}

// DBTX is what statements run on: a pool, a connection, or the caller's transaction.
type DBTX interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// A Store has the statements for one schema, with {schema} filled in. It holds no connection and is safe for concurrent
// use.
type Store struct {
	checkVersion, checkOrigin, repair string

	createTopic, getTopic, listTopics, deleteTopic                             string
	createSubscription, getSubscription, listSubscriptions, deleteSubscription string
	publish, claim, claimed, ack, ackOne, nack, extend                         string
	metrics, listDeadLetters, reprocess, purge                                 string
	sweep, listExpired, removeOrphans                                          string
	listSlots, rotate, truncateSlot, messageSlotNeeds, leaseSlotNeeds          string
	vacate, spill                                                              string
	createClient, getClient, listClients, updateClient, deleteClient           string
	getCredentials, getTokenVersion                                            string
	now, publishedBetween                                                      string
	look, lastBase                                                             string

	table string // of the schema's state, quoted
}

// New returns the statements for a schema. It quotes the name.
func New(schema string) *Store {
	quoted := pgx.Identifier{schema}.Sanitize()
	fill := strings.NewReplacer("{schema}", quoted).Replace
	return &Store{
		table:              quoted + ".log_state",
		checkVersion:       fill(checkVersion),
		checkOrigin:        fill(checkOrigin),
		repair:             fill(repair),
		createTopic:        fill(createTopic),
		getTopic:           fill(getTopic),
		listTopics:         fill(listTopics),
		deleteTopic:        fill(deleteTopic),
		createSubscription: fill(createSubscription),
		getSubscription:    fill(getSubscription),
		listSubscriptions:  fill(listSubscriptions),
		deleteSubscription: fill(deleteSubscription),
		publish:            fill(publish),
		claim:              fill(claim),
		claimed:            fill(claimed),
		ack:                fill(ack),
		ackOne:             fill(ackOne),
		nack:               fill(nack),
		extend:             fill(extend),
		metrics:            fill(metrics),
		listDeadLetters:    fill(listDeadLetters),
		reprocess:          fill(reprocess),
		purge:              fill(purge),
		sweep:              fill(sweep),
		listExpired:        fill(listExpired),
		removeOrphans:      fill(removeOrphans),
		listSlots:          fill(listSlots),
		rotate:             fill(rotate),
		truncateSlot:       fill(truncateSlot),
		messageSlotNeeds:   fill(messageSlotNeeds),
		leaseSlotNeeds:     fill(leaseSlotNeeds),
		vacate:             fill(vacate),
		spill:              fill(spill),
		createClient:       fill(createClient),
		getClient:          fill(getClient),
		listClients:        fill(listClients),
		updateClient:       fill(updateClient),
		deleteClient:       fill(deleteClient),
		getCredentials:     fill(getCredentials),
		getTokenVersion:    fill(getTokenVersion),
		now:                fill(now),
		publishedBetween:   fill(publishedBetween),
		look:               fill(look),
		lastBase:           fill(lastBase),
	}
}

const (
	checkVersion = `SELECT version, oldest_binary FROM {schema}.log_state`
	checkOrigin  = `SELECT EXISTS (SELECT FROM {schema}.origin WHERE messages = '{schema}.messages'::regclass AND xmin = written_by)`
)

// CheckSchema returns nil if this code can work on the schema as it is, else ErrSchemaOutdated, ErrBinaryOutdated or
// ErrRestored. It does not fail a transaction that it runs in.
func (s *Store) CheckSchema(ctx context.Context, db DBTX) error {
	var exists bool
	if err := db.QueryRow(ctx, `SELECT pg_catalog.to_regclass($1) IS NOT NULL`, s.table).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		return ErrSchemaOutdated
	}
	var version, oldestBinary int
	err := db.QueryRow(ctx, s.checkVersion).Scan(&version, &oldestBinary)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // a first migration is still running, or was cut off
		return ErrSchemaOutdated
	case err != nil:
		return err
	case version < Version:
		return ErrSchemaOutdated
	case oldestBinary > Version:
		return ErrBinaryOutdated
	}
	var home bool
	if err := db.QueryRow(ctx, s.checkOrigin).Scan(&home); err != nil {
		return err
	}
	if !home {
		return ErrRestored
	}
	return nil
}

const repair = `SELECT outcome, repaired, moved FROM {schema}.repair()`

// Outcomes of Repair.
const (
	RepairOK         = "ok"
	RepairReplicated = "replicated" // logical replication still writes to the tables
	RepairLocked     = "locked"     // somebody has had a lock on a table for too long
)

// Repair makes a schema work that was copied from another cluster. It returns whether there was something to repair, and how
// many messages it moved to deliveries.
func (s *Store) Repair(ctx context.Context, db Batcher) (outcome string, repaired bool, moved int, err error) {
	err = inOne(ctx, db, row{&outcome, &repaired, &moved}, s.repair)
	return outcome, repaired, moved, translate(err)
}

// translate gives Postgres's errors our names where a caller could tell them apart. It looks at SQLSTATE and constraint,
// never at the text.
func translate(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNotFound
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	switch pgErr.Code {
	case "23505": // unique_violation
		switch pgErr.ConstraintName {
		case "topics_id_key", "subscriptions_id_key", "clients_pkey":
			return ErrExists
		}
	case "23503": // foreign_key_violation
		if pgErr.ConstraintName == "subscriptions_topic_num_fkey" { // the topic was deleted meanwhile
			return ErrNotFound
		}
	case "3F000", "42P01", "42883": // invalid_schema_name, undefined_table, undefined_function
		return errors.Join(ErrSchemaOutdated, err)
	case "55P03": // lock_not_available: the tables were locked for too long, where it is not the subscription's own lock
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case "PS001": // of the function check_origin
		return ErrRestored
	}
	return err
}
