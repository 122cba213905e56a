package main

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/takeover"
)

type importCommand struct {
	From                                   string `env:"FASTPUBSUB_IMPORT_FROM" placeholder:"URL" help:"The database of the Python server (FASTPUBSUB_IMPORT_FROM). Default: the same as --database-url."`
	FromSchema                             string `env:"FASTPUBSUB_IMPORT_FROM_SCHEMA" default:"public" help:"The schema that its tables are in (FASTPUBSUB_IMPORT_FROM_SCHEMA)."`
	DryRun                                 bool   `help:"Write nothing: count, and say what would be refused."`
	CleanupStuckMessagesLockTimeoutSeconds string `group:"New subscriptions" env:"FASTPUBSUB_CLEANUP_STUCK_MESSAGES_LOCK_TIMEOUT_SECONDS" default:"60" help:"Their ack_deadline_seconds."`
	databaseFlags                          `embed:"" group:"Database"`
	logFlags                               `embed:"" group:"Log"`
}

// Help implements kong.HelpProvider.
func (importCommand) Help() string {
	return `Stop the Python server first, and its cron jobs; run db-migrate; import; start the new server. The old tables are only read, and
may be in the same database. It takes over topics, subscriptions, clients with their secrets, and the messages that are not
acked, to the subscriptions that have them: with their attempts, the time at which they are due, or as dead letters.

It may be run again, also when it was cut off: what came over does not come twice, and nothing here is changed or overwritten.
Messages get new ids; the table imported_messages has the old ones.

What does not fit the rules of this server is left behind, with a line for each; the rest is taken over, and the exit code is 1.`
}

// Run implements the subcommand.
func (c *importCommand) Run(p *process) error {
	var bad badSettings
	connect := c.pooled(&bad)
	variable, url := "FASTPUBSUB_IMPORT_FROM", c.From
	if url == "" {
		variable, url = "FASTPUBSUB_DATABASE_URL", c.DatabaseURL
	}
	var from *pgxpool.Config
	if c.From != "" || len(bad) == 0 { // else it was said already
		from = parseURL(&bad, variable, url)
	}
	if c.FromSchema == "" {
		bad.add("FASTPUBSUB_IMPORT_FROM_SCHEMA", "must not be empty")
	}
	deadline := bad.seconds("FASTPUBSUB_CLEANUP_STUCK_MESSAGES_LOCK_TIMEOUT_SECONDS", c.CleanupStuckMessagesLockTimeoutSeconds, 12*60*60)
	logger := c.logger(&bad, p.stderr)
	if err := bad.err(); err != nil {
		return err
	}
	config := fastpubsub.Config{SubscriptionDefaults: fastpubsub.SubscriptionSettings{AckDeadline: deadline}, Logger: logger}
	return connect(p.ctx, config, func(pool *pgxpool.Pool, broker *fastpubsub.Broker) error {
		result, err := takeover.Run(p.ctx, takeover.Config{
			From: from.ConnConfig, FromSchema: c.FromSchema,
			Pool: pool, Broker: broker, Schema: c.DatabaseSchema,
			DryRun: c.DryRun, Logger: logger,
		})
		if err != nil && result == (takeover.Result{}) { // it has counted nothing
			return err
		}
		for _, kind := range []struct {
			name string
			takeover.Count
		}{
			{"topics", result.Topics}, {"subscriptions", result.Subscriptions}, {"clients", result.Clients},
			{"messages", result.Messages}, {"dead_letters", result.DeadLetters},
		} {
			if _, err := fmt.Fprintf(p.stdout, "%s=%d new=%d\n", kind.name, kind.Found, kind.New); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(p.stdout, "refused=%d\n", result.Refused); err != nil {
			return err
		}
		if err == nil && result.Refused > 0 {
			return errFound
		}
		return err
	})
}
