// Package fastpubsub is publish/subscribe on the Postgres that a program already has.
//
// Messages are published to topics; each subscription of a topic gets every message that is committed after it was
// created, or those that match its filter. A consumer takes messages in batches and acks each of them, or nacks it: then it
// is delivered again after a backoff that grows, and becomes a dead letter in the end. So is a message whose consumer says
// nothing until its ack deadline. Delivery is at least once: handlers must tolerate seeing a message twice. Publishing can
// be part of the program's own transaction, and so can acking and nacking: see [Broker.PublishTx] and [Broker.AckTx].
//
//	broker, err := fastpubsub.New(pool, fastpubsub.Config{})
//	ids, err := broker.Publish(ctx, "orders", fastpubsub.JSON(order))
//	msgs, err := broker.Consume(ctx, "emails", fastpubsub.ConsumeOptions{Consumer: "w1", Max: 100})
//	n, err := broker.Ack(ctx, "emails", ids)
//
// The tables live in a schema of their own, which package migrations creates and upgrades.
package fastpubsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub/store"
)

// These errors are returned, wrapped with the ids involved, by the methods of [Broker].
var (
	// ErrNotFound means that the topic, subscription or client named does not exist.
	ErrNotFound = store.ErrNotFound
	// ErrExists means that the id is taken.
	ErrExists = store.ErrExists
	// ErrBusy means that others held a subscription, or the tables, for longer than a call waits for them, 1 to 5 seconds, or that
	// more secrets of clients were to be checked than can be in 5 seconds; nothing was done. Try again.
	ErrBusy = store.ErrBusy
	// ErrSchemaOutdated means that the schema is missing or older than this code: migrate it.
	ErrSchemaOutdated = store.ErrSchemaOutdated
	// ErrBinaryOutdated means that the schema was migrated by a newer release which this code cannot work with.
	ErrBinaryOutdated = store.ErrBinaryOutdated
	// ErrRestored means that the tables were copied here from another database cluster, by restoring a dump or by logical
	// replication: see [Broker.Repair].
	ErrRestored = store.ErrRestored
	// ErrInvalid matches every [InvalidError]: a value was refused before anything was written.
	ErrInvalid = errors.New("invalid")
)

// A Problem is one thing that is wrong with a value.
type Problem struct {
	Field string // where, in the names of the REST API: "filter.country.0"
	Type  string // the kind of problem, as in the 422 answers of the REST API: "list_type"
	Msg   string // the rule and its limit: "must have at most 100 values, not 101"
}

// InvalidError has all the problems of a refused value, in the order of its fields. It matches [ErrInvalid].
type InvalidError struct {
	Problems []Problem
}

func (e *InvalidError) Error() string {
	var text strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(p.Field + ": " + p.Msg)
	}
	return text.String()
}

// Is reports whether target is ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// problems collects what is wrong with a value.
type problems []Problem

func (p *problems) add(field, kind, format string, args ...any) {
	*p = append(*p, Problem{field, kind, fmt.Sprintf(format, args...)})
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return &InvalidError{p}
}

// Config is the settings of a [Broker]. The zero Config is a good one.
type Config struct {
	// Schema is where the tables are. Default "fastpubsub".
	Schema string

	// SubscriptionDefaults are for what a new subscription leaves out. Their own defaults: 5 attempts, backoff from 5
	// to 300 seconds, an ack deadline of 60 seconds.
	SubscriptionDefaults SubscriptionSettings

	// Maintenance is how [Broker.Run] and [Broker.CleanupAcked] give space back.
	Maintenance MaintenanceSettings

	// OnMaintenance, if it is set, is called by [Broker.Run] after each pass with what that did: for metrics. Run waits for it.
	OnMaintenance func(MaintenancePass)

	// Tokens is how [Broker.IssueToken] makes tokens. Without a key there are none.
	Tokens TokenSettings

	// Notifications are how [Broker.Run] wakes consumers in other processes.
	Notifications NotificationSettings

	// Hooks, if they are set, see what is done with messages: for traces and metrics. Without them they cost nothing.
	Hooks Hooks

	// Logger gets what happens in Run and Receive, and stored hashes that cannot be used. In its records subscription and message
	// are ids, and error is what failed. What concerns a message has the context of its handler, with what Hooks put there.
	// Default slog.Default().
	Logger *slog.Logger
}

// DefaultSchema is where the tables are when nothing else is said.
const DefaultSchema = "fastpubsub"

// A Broker publishes to topics and consumes from subscriptions. It is safe for concurrent use and needs no
// Close: it runs goroutines only while calls of Publish share a statement, and while calls wait for messages.
//
// Until the schema was once found good, any method may return ErrSchemaOutdated, ErrBinaryOutdated or ErrRestored; a schema
// that goes away later is ErrSchemaOutdated too.
type Broker struct {
	pool     *pgxpool.Pool
	store    *store.Store
	defaults SubscriptionSettings
	group    *group
	checked  atomic.Bool // the schema's version, once it was found good

	tokens        TokenSettings
	hasher        *hasher
	maintenance   MaintenanceSettings
	onMaintenance func(MaintenancePass) // may be nil
	notifications NotificationSettings
	hooks         hooks
	logger        *slog.Logger

	waits    *waits
	notifier *notifier
	channel  string // of notifications
}

// New returns a Broker that works on pool, which stays the caller's: it is never closed, and its settings, query mode
// among them, apply. New does not talk to the database; the schema's version is checked at first use.
//
// It returns an InvalidError for a Config that cannot be used.
func New(pool *pgxpool.Pool, config Config) (*Broker, error) {
	var p problems
	if pool == nil {
		p.add("pool", "missing", "must not be nil")
	}
	if config.Schema == "" {
		config.Schema = DefaultSchema
	}
	if err := store.CheckSchemaName(config.Schema); err != nil {
		p.add("schema", "string_pattern_mismatch", "%v", err)
	}
	defaults := config.SubscriptionDefaults.or(SubscriptionSettings{
		MaxDeliveryAttempts: 5,
		BackoffMin:          5 * time.Second,
		BackoffMax:          300 * time.Second,
		AckDeadline:         60 * time.Second,
	})
	defaults.check(&p)
	config.Maintenance.check(&p)
	config.Tokens.check(&p)
	if err := p.err(); err != nil {
		return nil, fmt.Errorf("fastpubsub config: %w", err)
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	b := &Broker{
		pool: pool, store: store.New(config.Schema), defaults: defaults,
		tokens: config.Tokens.orDefaults(), hasher: newHasher(hashesAtOnce(runtime.GOMAXPROCS(0))),
		maintenance: config.Maintenance.orDefaults(), notifications: config.Notifications, logger: config.Logger,
		notifier: newNotifier(), channel: notifyChannel(config.Schema),
		onMaintenance: config.OnMaintenance, hooks: hooks{config.Hooks},
	}
	b.group = newGroup(func(ctx context.Context, topicID string, payloads []string, attributes []*string) ([]ID, error) {
		return b.send(ctx, pool, topicID, payloads, attributes)
	})
	b.waits = newWaits(func(ctx context.Context, subscriptionIDs []string) ([]store.Look, error) {
		return b.store.Look(ctx, pool, subscriptionIDs)
	}, func(ctx context.Context) (int64, error) { return b.store.LastBase(ctx, pool) }, b.logger)
	return b, nil
}

// Check asks the database whether it can be reached and whether its schema suits this code. The other methods ask for
// themselves, once; a health check asks every time.
//
// It returns ErrSchemaOutdated, ErrBinaryOutdated or ErrRestored where the schema does not suit.
func (b *Broker) Check(ctx context.Context) error {
	if err := b.store.CheckSchema(ctx, b.pool); err != nil {
		return err
	}
	b.checked.Store(true)
	return nil
}

// ready checks the schema at first use, on db, since another connection may not be had while a transaction holds the
// pool's last.
func (b *Broker) ready(ctx context.Context, db store.DBTX) error {
	if b.checked.Load() {
		return nil
	}
	if err := b.store.CheckSchema(ctx, db); err != nil {
		return err
	}
	b.checked.Store(true)
	return nil
}
