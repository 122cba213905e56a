package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/migrations"
)

// badSettings is the error of a command whose settings cannot be used: a line each, which begins with the variable's
// name. The line never has the value of one that may be secret.
type badSettings []string

func (b badSettings) Error() string { return strings.Join(b, "\n") }

func (b *badSettings) add(variable, format string, args ...any) {
	*b = append(*b, variable+": "+fmt.Sprintf(format, args...))
}

func (b badSettings) err() error {
	if len(b) == 0 {
		return nil
	}
	return b
}

func (b *badSettings) integer(variable, value string, lowest, highest int) int {
	n, err := strconv.Atoi(value)
	if err != nil || n < lowest || n > highest {
		b.add(variable, "must be an integer from %d to %d, not %q", lowest, highest, value)
		return lowest // which no other check minds
	}
	return n
}

func (b *badSettings) seconds(variable, value string, highest int) time.Duration {
	return time.Duration(b.integer(variable, value, 1, highest)) * time.Second
}

func (b *badSettings) boolean(variable, value string) bool {
	on, err := parseBool(value)
	if err != nil {
		b.add(variable, "%v", err)
	}
	return on
}

// The flags are strings, which kong takes as they are: what is wrong with them is found below, all of it at once, and
// said without repeating a password.

type databaseFlags struct {
	DatabaseURL    string `env:"FASTPUBSUB_DATABASE_URL" placeholder:"URL" help:"The database: postgres://USER:PASSWORD@HOST:PORT/DATABASE. Prefer the variable: other users of the machine see arguments."`
	DatabaseSchema string `env:"FASTPUBSUB_DATABASE_SCHEMA" default:"fastpubsub" help:"The schema that the tables are in."`
}

type poolFlags struct {
	DatabasePoolSize    string `env:"FASTPUBSUB_DATABASE_POOL_SIZE" default:"5" help:"Connections to the database."`
	DatabaseMaxOverflow string `env:"FASTPUBSUB_DATABASE_MAX_OVERFLOW" default:"10" help:"Connections beyond the pool size, under load."`
}

// connectionFlags are about the server's connections.
type connectionFlags struct {
	DatabasePoolPrePing string `env:"FASTPUBSUB_DATABASE_POOL_PRE_PING" default:"true" help:"Whether a connection that was idle for a second is tried before it is used, true or false."`
	DatabaseEcho        string `env:"FASTPUBSUB_DATABASE_ECHO" default:"false" help:"Whether to log the SQL of each statement, true or false. Its arguments are never logged."`
}

// apply changes the settings of a pool. config may be nil, if it was refused.
func (f *connectionFlags) apply(b *badSettings, config *pgxpool.Config, logger *slog.Logger) {
	prePing := b.boolean("FASTPUBSUB_DATABASE_POOL_PRE_PING", f.DatabasePoolPrePing)
	echo := b.boolean("FASTPUBSUB_DATABASE_ECHO", f.DatabaseEcho)
	if config == nil {
		return
	}
	if !prePing {
		config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	}
	if echo {
		config.ConnConfig.Tracer = sqlEcho{logger}
	}
}

type logFlags struct {
	LogLevel     string `env:"FASTPUBSUB_LOG_LEVEL" default:"info" help:"What to log: debug, info, warning or error. The server logs each request as debug, unless it fails."`
	LogFormatter string `env:"FASTPUBSUB_LOG_FORMATTER" placeholder:"FORMAT" default:"asctime=%(asctime)s level=%(levelname)s pathname=%(pathname)s line=%(lineno)s message=%(message)s" help:"json, text, or a format with fields of Python's logging, such as %(asctime)s. What belongs to the event follows as key=value."`
}

type apiFlags struct {
	APIHost            string `name:"api-host" env:"FASTPUBSUB_API_HOST" default:"0.0.0.0" help:"The address to listen on."`
	APIPort            string `name:"api-port" env:"FASTPUBSUB_API_PORT" default:"8000" help:"The port to listen on; 0 for any free one."`
	APIMaxBodyBytes    string `name:"api-max-body-bytes" env:"FASTPUBSUB_API_MAX_BODY_BYTES" default:"16777216" help:"The largest request body."`
	APIDocsEnabled     string `name:"api-docs-enabled" env:"FASTPUBSUB_API_DOCS_ENABLED" default:"true" help:"Whether /docs, /redoc and /openapi.json are there, true or false."`
	PublishMaxMessages string `env:"FASTPUBSUB_PUBLISH_MAX_MESSAGES" default:"10000" help:"Messages in one publish request, at most."`
	AckMaxIDs          string `name:"ack-max-ids" env:"FASTPUBSUB_ACK_MAX_IDS" default:"1000" help:"Messages in one request to ack, nack, extend or reprocess, at most."`
	APINumWorkers      string `name:"api-num-workers" env:"FASTPUBSUB_API_NUM_WORKERS" placeholder:"N" help:"How many processor cores to use at the same time, in one process. Default: all."`
	APIDebug           string `name:"api-debug" env:"FASTPUBSUB_API_DEBUG" default:"false" help:"Whether answers of 500 say their cause, and this machine may read /debug/pprof, true or false."`
}

// workers returns for how many cores the server is; 0 for all.
func (f *apiFlags) workers(b *badSettings) int {
	if f.APINumWorkers == "" {
		return 0
	}
	return b.integer("FASTPUBSUB_API_NUM_WORKERS", f.APINumWorkers, 1, 10_000)
}

type newFlags struct {
	SubscriptionMaxAttempts                string `env:"FASTPUBSUB_SUBSCRIPTION_MAX_ATTEMPTS" default:"5" help:"Its max_delivery_attempts."`
	SubscriptionBackoffMinSeconds          string `env:"FASTPUBSUB_SUBSCRIPTION_BACKOFF_MIN_SECONDS" default:"5" help:"Its backoff_min_seconds."`
	SubscriptionBackoffMaxSeconds          string `env:"FASTPUBSUB_SUBSCRIPTION_BACKOFF_MAX_SECONDS" default:"300" help:"Its backoff_max_seconds."`
	CleanupStuckMessagesLockTimeoutSeconds string `env:"FASTPUBSUB_CLEANUP_STUCK_MESSAGES_LOCK_TIMEOUT_SECONDS" default:"60" help:"Its ack_deadline_seconds."`
}

// retentionFlags are of the server, whose maintenance goes on all the time, and of the cron job.
type retentionFlags struct {
	CleanupAckedMessagesOlderThanSeconds string `env:"FASTPUBSUB_CLEANUP_ACKED_MESSAGES_OLDER_THAN_SECONDS" default:"3600" help:"How long a slot of the log is written to, at most: the space of acked messages comes back one to two such periods later."`
}

func (f *retentionFlags) olderThan(b *badSettings) time.Duration {
	return b.seconds("FASTPUBSUB_CLEANUP_ACKED_MESSAGES_OLDER_THAN_SECONDS", f.CleanupAckedMessagesOlderThanSeconds, math.MaxInt32)
}

type maintenanceFlags struct {
	MaintenanceEnabled string `env:"FASTPUBSUB_MAINTENANCE_ENABLED" default:"true" help:"Whether the server ends leases that have run out and gives the space of acked messages back, true or false."`
}

// enabled says whether the server does maintenance.
func (f *maintenanceFlags) enabled(b *badSettings) bool {
	return b.boolean("FASTPUBSUB_MAINTENANCE_ENABLED", f.MaintenanceEnabled)
}

// listenFlags are of the server, which hears on a connection of its own what other processes publish.
type listenFlags struct {
	ListenDatabaseURL string `env:"FASTPUBSUB_LISTEN_DATABASE_URL" placeholder:"URL" help:"The database's direct address for LISTEN, if the other one is that of a pooler."`
}

// listen returns the settings of that connection, nil for those of the pool.
func (f *listenFlags) listen(b *badSettings) *pgx.ConnConfig {
	if f.ListenDatabaseURL == "" {
		return nil
	}
	if config := parseURL(b, "FASTPUBSUB_LISTEN_DATABASE_URL", f.ListenDatabaseURL); config != nil {
		return config.ConnConfig
	}
	return nil
}

// schema returns the name of the schema.
func (f *databaseFlags) schema(b *badSettings) string {
	if err := migrations.CheckSchemaName(f.DatabaseSchema); err != nil {
		b.add("FASTPUBSUB_DATABASE_SCHEMA", "%v", err)
	}
	return f.DatabaseSchema
}

// parseURL reads the address of a database. SQLAlchemy's scheme is accepted too, for the sake of existing settings.
func parseURL(b *badSettings, variable, text string) *pgxpool.Config {
	if text == "" {
		b.add(variable, "must be set")
		return nil
	}
	if url, ok := ourURL(text); ok {
		// The error is not shown: it quotes the URL.
		if config, err := pgxpool.ParseConfig(url); err == nil {
			config.ConnConfig.RuntimeParams["application_name"] = applicationName(config)
			if config.ConnConfig.ConnectTimeout == 0 {
				config.ConnConfig.ConnectTimeout = connectTimeout
			}
			return config
		}
	}
	b.add(variable, "must be a URL like postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters %%-encoded")
	return nil
}

// ourURL turns a URL for SQLAlchemy into one for pgx. ok is false for one of something else.
func ourURL(text string) (_ string, ok bool) {
	scheme, rest, _ := strings.Cut(text, "://")
	scheme, _, _ = strings.Cut(scheme, "+") // its driver
	if scheme != "postgres" && scheme != "postgresql" {
		return "", false
	}
	rest, query, _ := strings.Cut(rest, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", false
	}
	for _, name := range otherDrivers {
		values.Del(name)
	}
	// asyncpg's name for sslmode.
	if mode := values.Get("ssl"); mode != "" {
		values.Del("ssl")
		if mode == "true" {
			mode = "require"
		}
		if !values.Has("sslmode") {
			values.Set("sslmode", mode)
		}
	}
	if len(values) > 0 {
		rest += "?" + strings.ReplaceAll(values.Encode(), "+", "%20")
	}
	return "postgres://" + rest, true
}

// otherDrivers are parameters that libpq, psycopg or asyncpg know, pgx does not, and that change nothing here. pgx would send
// them to the server, which refuses what it does not know.
var otherDrivers = []string{
	"gssencmode", "gsslib", "gssdelegation", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
	"sslcompression", "fallback_application_name", "load_balance_hosts", "prepare_threshold", "async_fallback", "command_timeout",
	"prepared_statement_cache_size", "prepared_statement_name_func", "statement_cache_size",
}

// connectTimeout is for URLs without connect_timeout.
const connectTimeout = 10 * time.Second

func applicationName(config *pgxpool.Config) string {
	if name := config.ConnConfig.RuntimeParams["application_name"]; name != "" {
		return name
	}
	return "fastpubsub"
}

// pool returns the settings of the server's connections.
func (f *databaseFlags) pool(b *badSettings, p poolFlags) *pgxpool.Config {
	const highest = 10_000
	config := parseURL(b, "FASTPUBSUB_DATABASE_URL", f.DatabaseURL)
	size := b.integer("FASTPUBSUB_DATABASE_POOL_SIZE", p.DatabasePoolSize, 1, highest)
	overflow := b.integer("FASTPUBSUB_DATABASE_MAX_OVERFLOW", p.DatabaseMaxOverflow, 0, highest)
	if config != nil {
		config.MaxConns = int32(size + overflow)
	}
	return config
}

// logger returns a logger to w.
func (f *logFlags) logger(b *badSettings, w io.Writer) *slog.Logger {
	levels := map[string]slog.Level{
		"debug":   slog.LevelDebug,
		"info":    slog.LevelInfo,
		"warning": slog.LevelWarn,
		"error":   slog.LevelError,
	}
	level, ok := levels[strings.ToLower(f.LogLevel)]
	if !ok {
		b.add("FASTPUBSUB_LOG_LEVEL", "must be debug, info, warning or error, not %q", f.LogLevel)
	}
	handler, err := newLogHandler(w, f.LogFormatter, level)
	if err != nil {
		b.add("FASTPUBSUB_LOG_FORMATTER", "%v", err)
		handler = slog.DiscardHandler // it is not used
	}
	return slog.New(handler)
}

// apiSettings are what [serve] needs besides a database.
type apiSettings struct {
	address              string // host:port
	schema               string
	api                  httpapi.Config // without its Logger
	subscriptionDefaults fastpubsub.SubscriptionSettings
	tokens               fastpubsub.TokenSettings
	listen               *pgx.ConnConfig // nil for the pool's
	maintenance          bool
	slotAge              time.Duration // 0 for the default
	debug                bool          // serve /debug/pprof to this machine
}

// settings returns all but the schema and the defaults of subscriptions.
func (f *apiFlags) settings(b *badSettings) apiSettings {
	port := b.integer("FASTPUBSUB_API_PORT", f.APIPort, 0, math.MaxUint16)
	debug := b.boolean("FASTPUBSUB_API_DEBUG", f.APIDebug)
	return apiSettings{
		address: net.JoinHostPort(f.APIHost, strconv.Itoa(port)),
		debug:   debug,
		api: httpapi.Config{
			Debug:              debug,
			MaxBodyBytes:       int64(b.integer("FASTPUBSUB_API_MAX_BODY_BYTES", f.APIMaxBodyBytes, 1, 64<<20)),
			PublishMaxMessages: b.integer("FASTPUBSUB_PUBLISH_MAX_MESSAGES", f.PublishMaxMessages, 1, 10_000),
			AckMaxIDs:          b.integer("FASTPUBSUB_ACK_MAX_IDS", f.AckMaxIDs, 1, 10_000),
			DisableDocs:        !b.boolean("FASTPUBSUB_API_DOCS_ENABLED", f.APIDocsEnabled),
		},
	}
}

func (f *newFlags) subscriptionDefaults(b *badSettings) fastpubsub.SubscriptionSettings {
	const (
		attempts   = "FASTPUBSUB_SUBSCRIPTION_MAX_ATTEMPTS"
		backoffMin = "FASTPUBSUB_SUBSCRIPTION_BACKOFF_MIN_SECONDS"
		backoffMax = "FASTPUBSUB_SUBSCRIPTION_BACKOFF_MAX_SECONDS"
		deadline   = "FASTPUBSUB_CLEANUP_STUCK_MESSAGES_LOCK_TIMEOUT_SECONDS"
	)
	defaults := fastpubsub.SubscriptionSettings{
		MaxDeliveryAttempts: b.integer(attempts, f.SubscriptionMaxAttempts, 1, math.MaxInt32),
		BackoffMin:          b.seconds(backoffMin, f.SubscriptionBackoffMinSeconds, math.MaxInt32),
	}
	before := len(*b)
	defaults.BackoffMax = b.seconds(backoffMax, f.SubscriptionBackoffMaxSeconds, math.MaxInt32)
	if len(*b) == before && defaults.BackoffMax < defaults.BackoffMin {
		b.add(backoffMax, "must be at least %s, which is %s", backoffMin, f.SubscriptionBackoffMinSeconds)
	}
	defaults.AckDeadline = b.seconds(deadline, f.CleanupStuckMessagesLockTimeoutSeconds, 12*60*60)
	return defaults
}
