package main

import (
	"context"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
)

type cleanupStuck struct {
	databaseFlags `embed:"" group:"Database"`
	logFlags      `embed:"" group:"Log"`
}

// Run implements the subcommand.
func (c *cleanupStuck) Run(p *process) error {
	var bad badSettings
	connect := c.connection(&bad)
	logger := c.logger(&bad, p.stderr)
	if err := bad.err(); err != nil {
		return err
	}
	return connect(p.ctx, func(broker *fastpubsub.Broker) error {
		stuck, err := broker.CleanupStuck(p.ctx)
		level := slog.LevelInfo
		if stuck.Busy > 0 {
			level = slog.LevelWarn
		}
		if err == nil {
			logger.Log(p.ctx, level, "stuck messages cleaned up",
				"released", stuck.Released, "dead_letters", stuck.DeadLetters, "busy_subscriptions", stuck.Busy)
		}
		return err
	})
}

type cleanupAcked struct {
	databaseFlags  `embed:"" group:"Database"`
	retentionFlags `embed:"" group:"Maintenance"`
	logFlags       `embed:"" group:"Log"`
}

// Run implements the subcommand.
func (c *cleanupAcked) Run(p *process) error {
	var bad badSettings
	connect := c.connection(&bad)
	olderThan := c.olderThan(&bad)
	logger := c.logger(&bad, p.stderr)
	if err := bad.err(); err != nil {
		return err
	}
	return connect(p.ctx, func(broker *fastpubsub.Broker) error {
		freed, err := broker.CleanupAcked(p.ctx, olderThan)
		if err == nil {
			logger.Info("acked messages cleaned up", "freed_bytes", freed.Bytes, "slots_emptied", freed.Slots,
				"spilled_messages", freed.Spilled, "slots_needed", freed.Needed, "slots_waiting", freed.Waiting)
		}
		return err
	})
}

// connection checks the settings of a command that needs a broker for a moment. What it returns connects, calls use, and
// disconnects.
func (f *databaseFlags) connection(b *badSettings) func(ctx context.Context, use func(*fastpubsub.Broker) error) error {
	connect := f.pooled(b)
	return func(ctx context.Context, use func(*fastpubsub.Broker) error) error {
		return connect(ctx, fastpubsub.Config{}, func(_ *pgxpool.Pool, broker *fastpubsub.Broker) error { return use(broker) })
	}
}

// pooled is connection for a command that needs the pool too, which has one connection, or other settings of a broker.
func (f *databaseFlags) pooled(b *badSettings) func(context.Context, fastpubsub.Config, func(*pgxpool.Pool, *fastpubsub.Broker) error) error {
	config := parseURL(b, "FASTPUBSUB_DATABASE_URL", f.DatabaseURL)
	schema := f.schema(b)
	return func(ctx context.Context, brokerConfig fastpubsub.Config, use func(*pgxpool.Pool, *fastpubsub.Broker) error) error {
		config.MinConns, config.MaxConns = 0, 1
		pool, err := pgxpool.NewWithConfig(ctx, config)
		if err != nil {
			return err
		}
		defer pool.Close()
		brokerConfig.Schema = schema
		broker, err := fastpubsub.New(pool, brokerConfig)
		if err != nil {
			return err
		}
		return use(pool, broker)
	}
}
