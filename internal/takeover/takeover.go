// Package takeover copies what the Python server has in its database into ours: topics, subscriptions, clients, and the messages
// that are not acked.
//
// It may run any number of times, and be cut off at any point. What is ours already stays as it is; messages are marked in the
// transaction that writes them, in a table that stays, so that each comes over once.
package takeover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/idrule"
)

// Config says from where to where.
type Config struct {
	From       *pgx.ConnConfig // the database of the Python server
	FromSchema string          // where its tables are

	Pool   *pgxpool.Pool // ours, migrated; one connection is enough
	Broker *fastpubsub.Broker
	Schema string // of the broker

	DryRun bool         // write nothing
	Logger *slog.Logger // gets a line for each thing that is refused, or changed
}

// A Count is how many things of a kind the Python server has, and how many of those are not ours yet, or were not.
type Count struct{ Found, New int }

// Result is what a run did, or would do.
type Result struct {
	Topics, Subscriptions, Clients, Messages, DeadLetters Count
	// Refused are those that cannot be ours, each of which was logged; messages of a subscription that was refused count, too.
	Refused int
}

// ErrNoTables means that the schema has no tables like those of the Python server.
var ErrNoTables = errors.New("there are no tables of the Python server")

// A run is one call of Run.
type run struct {
	Config
	fill   func(string) string // puts the schemas into a statement
	source pgx.Tx
	result Result

	topicIDs map[string]bool          // those that are ours
	subs     map[string]*subscription // nil for one that was refused
}

// Run copies everything. When ctx is cancelled or an error comes, what was copied stays; the next run goes on.
//
// It returns ErrNoTables for a schema that is not the Python server's.
func Run(ctx context.Context, config Config) (Result, error) {
	r := &run{
		Config: config,
		fill: strings.NewReplacer(
			"{from}", pgx.Identifier{config.FromSchema}.Sanitize(), "{schema}", pgx.Identifier{config.Schema}.Sanitize()).Replace,
		topicIDs: make(map[string]bool),
		subs:     make(map[string]*subscription),
	}
	if err := r.Broker.Check(ctx); err != nil {
		return Result{}, err
	}
	from := config.From.Copy()
	from.RuntimeParams["timezone"] = "UTC" // for columns without one
	conn, err := pgx.ConnectConfig(ctx, from)
	if err != nil {
		return Result{}, fmt.Errorf("the database of the Python server: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// All of it is of one moment.
	var started time.Time
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		r.source = tx
		if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&started); err != nil {
			return err
		}
		return r.all(ctx)
	})
	if err != nil {
		return r.result, err
	}
	return r.result, r.checkStopped(ctx, conn, started)
}

func (r *run) all(ctx context.Context) error {
	hasClients, err := r.checkTables(ctx)
	if err != nil {
		return err
	}
	if err := r.topics(ctx); err != nil {
		return fmt.Errorf("topics: %w", err)
	}
	if err := r.subscriptions(ctx); err != nil {
		return fmt.Errorf("subscriptions: %w", err)
	}
	if hasClients {
		if err := r.clients(ctx); err != nil {
			return fmt.Errorf("clients: %w", err)
		}
	}
	if err := r.messages(ctx); err != nil {
		return fmt.Errorf("messages: %w", err)
	}
	return nil
}

// checkTables looks for the columns that are read. Older versions had no clients.
func (r *run) checkTables(ctx context.Context) (hasClients bool, err error) {
	const columns = `
SELECT bool_and(w.name = 'clients' OR a.attnum IS NOT NULL), bool_and(a.attnum IS NOT NULL) FILTER (WHERE w.name = 'clients')
FROM (VALUES ('topics', '{id,created_at}'),
             ('subscriptions', '{id,topic_id,filter,max_delivery_attempts,backoff_min_seconds,backoff_max_seconds,created_at}'),
             ('subscription_messages', '{id,subscription_id,payload,status,delivery_attempts,available_at,locked_at,locked_by,created_at}'),
             ('clients', '{id,name,scopes,is_active,secret_hash,token_version,created_at,updated_at}')) w(name, columns)
CROSS JOIN LATERAL unnest(w.columns::text[]) c(name)
LEFT JOIN pg_namespace n ON n.nspname = $1
LEFT JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = w.name
LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = c.name AND NOT a.attisdropped`
	var complete bool
	if err := r.source.QueryRow(ctx, columns, r.FromSchema).Scan(&complete, &hasClients); err != nil {
		return false, err
	}
	if !complete {
		return false, fmt.Errorf("%w in schema %q of the database named", ErrNoTables, r.FromSchema)
	}
	return hasClients, nil
}

// refuse says that something cannot be ours.
func (r *run) refuse(what, id string, reason any) {
	r.result.Refused++
	r.Logger.Error("refused", what, id, "reason", reason)
}

// badID says what is wrong with an id here, where the rule is stricter than there; it is empty if nothing is.
func badID(id string) string {
	kind, msg := idrule.Check(id)
	if kind == "" {
		return ""
	}
	return "id: " + msg
}

func (r *run) topics(ctx context.Context) error {
	type topic struct {
		ID        string
		CreatedAt time.Time
	}
	rows, _ := r.source.Query(ctx, r.fill(`SELECT id::text, created_at::timestamptz FROM {from}.topics ORDER BY created_at, id`))
	topics, err := pgx.CollectRows(rows, pgx.RowToStructByPos[topic])
	if err != nil {
		return err
	}
	for _, t := range topics {
		r.result.Topics.Found++
		if bad := badID(t.ID); bad != "" {
			r.refuse("topic", t.ID, bad)
			continue
		}
		_, err := r.Broker.GetTopic(ctx, t.ID)
		isNew := errors.Is(err, fastpubsub.ErrNotFound)
		if isNew && !r.DryRun {
			_, err = r.Broker.CreateTopic(ctx, t.ID)
		} else if isNew {
			err = nil
		}
		switch {
		case err == nil && isNew:
			r.result.Topics.New++
			r.topicIDs[t.ID] = true
		case err == nil || errors.Is(err, fastpubsub.ErrExists): // somebody else was faster
			r.topicIDs[t.ID] = true
		default:
			return err
		}
		if err := r.since(ctx, "topics", t.ID, t.CreatedAt); err != nil {
			return err
		}
	}
	return nil
}

// since gives a topic or subscription the time at which it was created. Its own is later, unless this was done before.
func (r *run) since(ctx context.Context, table, id string, created time.Time) error {
	if r.DryRun {
		return nil
	}
	_, err := r.Pool.Exec(ctx, r.fill(`UPDATE {schema}.`+table+` SET created_at = $2 WHERE id = $1 AND created_at > $2`), id, created)
	return err
}

// A subscription is one of ours.
type subscription struct {
	num         int
	maxAttempts int
	ackDeadline time.Duration
	isNew       bool // and this is a dry run
}

func (r *run) subscriptions(ctx context.Context) error {
	type row struct {
		ID, TopicID                         string
		Filter                              *string
		MaxAttempts, BackoffMin, BackoffMax int
		CreatedAt                           time.Time
	}
	rows, _ := r.source.Query(ctx, r.fill(`
SELECT id::text, topic_id::text, nullif(filter::text, 'null'), max_delivery_attempts, backoff_min_seconds, backoff_max_seconds,
       created_at::timestamptz
FROM {from}.subscriptions ORDER BY created_at, id`))
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return err
	}
	for _, s := range all {
		r.result.Subscriptions.Found++
		r.subs[s.ID] = nil
		if bad := badID(s.ID); bad != "" {
			r.refuse("subscription", s.ID, bad)
			continue
		}
		if !r.topicIDs[s.TopicID] {
			r.refuse("subscription", s.ID, fmt.Sprintf("its topic %q was refused", s.TopicID))
			continue
		}
		if s.MaxAttempts < 1 || s.BackoffMin < 1 || s.BackoffMax < 1 {
			r.refuse("subscription", s.ID, "max_delivery_attempts and the backoffs must be at least 1")
			continue
		}
		if s.BackoffMin > s.BackoffMax { // there the latter wins
			r.Logger.Warn("backoff_min_seconds is above backoff_max_seconds, both become the latter",
				"subscription", s.ID, "backoff_min_seconds", s.BackoffMin, "backoff_max_seconds", s.BackoffMax)
			s.BackoffMin = s.BackoffMax
		}
		want := fastpubsub.Subscription{ID: s.ID, TopicID: s.TopicID, SubscriptionSettings: fastpubsub.SubscriptionSettings{
			MaxDeliveryAttempts: s.MaxAttempts,
			BackoffMin:          time.Duration(s.BackoffMin) * time.Second,
			BackoffMax:          time.Duration(s.BackoffMax) * time.Second,
		}}
		if s.Filter != nil {
			if want.Filter, err = fastpubsub.ParseFilter([]byte(*s.Filter)); err != nil {
				r.refuse("subscription", s.ID, err)
				continue
			}
		}
		ours, err := r.Broker.GetSubscription(ctx, s.ID)
		isNew := errors.Is(err, fastpubsub.ErrNotFound)
		if isNew && r.DryRun {
			r.result.Subscriptions.New++
			r.subs[s.ID] = &subscription{maxAttempts: s.MaxAttempts, ackDeadline: time.Minute, isNew: true}
			continue
		}
		if isNew {
			ours, err = r.Broker.CreateSubscription(ctx, want)
		}
		if err != nil {
			return err
		}
		if ours.TopicID != s.TopicID {
			r.refuse("subscription", s.ID, fmt.Sprintf("there is one of this id already, of topic %q", ours.TopicID))
			continue
		}
		if isNew {
			r.result.Subscriptions.New++
		}
		if err := r.since(ctx, "subscriptions", s.ID, s.CreatedAt); err != nil {
			return err
		}
		known := &subscription{maxAttempts: ours.MaxDeliveryAttempts, ackDeadline: ours.AckDeadline}
		err = r.Pool.QueryRow(ctx, r.fill(`SELECT num FROM {schema}.subscriptions WHERE id = $1`), s.ID).Scan(&known.num)
		if err != nil {
			return err
		}
		r.subs[s.ID] = known
	}
	return nil
}

func (r *run) clients(ctx context.Context) error {
	type row struct {
		ID                   uuid.UUID
		Name, Scopes, Hash   string
		IsActive             bool
		TokenVersion         int
		CreatedAt, UpdatedAt time.Time
	}
	rows, _ := r.source.Query(ctx, r.fill(`
SELECT id, name::text, scopes::text, secret_hash::text, is_active, token_version, created_at::timestamptz, updated_at::timestamptz
FROM {from}.clients ORDER BY created_at, id`))
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return err
	}
	for _, c := range all {
		r.result.Clients.Found++
		client := fastpubsub.Client{
			ID: c.ID, Name: c.Name, Scopes: strings.Fields(c.Scopes), Active: c.IsActive, TokenVersion: c.TokenVersion,
			CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
		}
		hash := fastpubsub.Secret(c.Hash)
		var err error
		if r.DryRun {
			err = r.wouldImport(ctx, client, hash)
		} else {
			err = r.Broker.ImportClient(ctx, client, hash)
		}
		var invalid *fastpubsub.InvalidError
		switch {
		case errors.As(err, &invalid):
			r.refuse("client", c.ID.String(), invalid)
		case errors.Is(err, fastpubsub.ErrExists):
		case err != nil:
			return err
		default:
			r.result.Clients.New++
		}
	}
	return nil
}

// wouldImport returns what ImportClient would.
func (r *run) wouldImport(ctx context.Context, client fastpubsub.Client, hash fastpubsub.Secret) error {
	if err := fastpubsub.CheckImport(client, hash); err != nil {
		return err
	}
	_, err := r.Broker.GetClient(ctx, client.ID)
	switch {
	case err == nil:
		return fastpubsub.ErrExists
	case errors.Is(err, fastpubsub.ErrNotFound):
		return nil
	}
	return err
}

// checkStopped reports whether the Python server was writing meanwhile: what it did then may be missing, or done twice.
func (r *run) checkStopped(ctx context.Context, conn *pgx.Conn, started time.Time) error {
	if r.DryRun {
		return nil
	}
	var n int
	err := conn.QueryRow(ctx, r.fill(`
SELECT count(*) FROM {from}.subscription_messages
WHERE created_at::timestamptz > $1 OR locked_at::timestamptz > $1`), started).Scan(&n)
	if err == nil && n > 0 {
		r.refuse("schema", r.FromSchema, fmt.Sprintf("%d messages were written there meanwhile: stop the Python server and import again", n))
	}
	return err
}
