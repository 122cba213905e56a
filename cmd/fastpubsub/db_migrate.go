package main

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/migrations"
)

type dbMigrate struct {
	databaseFlags      `embed:"" group:"Database"`
	MigrateDatabaseURL string `group:"Database" env:"FASTPUBSUB_MIGRATE_DATABASE_URL" placeholder:"URL" help:"The database's direct address, if the other one is that of a pooler: migrating locks by session."`
	logFlags           `embed:"" group:"Log"`
}

// Run implements the subcommand.
func (c *dbMigrate) Run(p *process) error {
	var bad badSettings
	variable, url := "FASTPUBSUB_DATABASE_URL", c.DatabaseURL
	if c.MigrateDatabaseURL != "" {
		variable, url = "FASTPUBSUB_MIGRATE_DATABASE_URL", c.MigrateDatabaseURL
	}
	config := parseURL(&bad, variable, url)
	schema := c.schema(&bad)
	logger := c.logger(&bad, p.stderr)
	if err := bad.err(); err != nil {
		return err
	}
	return migrate(p.ctx, config.ConnConfig, schema, logger)
}

// migrate brings a schema up to date and logs what that did.
func migrate(ctx context.Context, config *pgx.ConnConfig, schema string, logger *slog.Logger) error {
	before, err := status(ctx, config, schema)
	if err != nil {
		return err
	}
	if err := migrations.Up(ctx, config, schema); err != nil {
		return err
	}
	after, err := status(ctx, config, schema)
	if err != nil {
		return err
	}
	message := "schema migrated"
	if before.Current {
		message = "schema is up to date"
	}
	logger.Info(message, "schema", schema, "from_version", before.Version, "version", after.Version)
	return nil
}

func status(ctx context.Context, config *pgx.ConnConfig, schema string) (migrations.Status, error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return migrations.Status{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return migrations.Get(ctx, conn, schema)
}
