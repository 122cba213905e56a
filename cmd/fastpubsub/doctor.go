package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/doctor"
)

type doctorCommand struct {
	databaseFlags      `embed:"" group:"Database"`
	poolFlags          `embed:"" group:"Database"`
	MigrateDatabaseURL string `group:"Database" env:"FASTPUBSUB_MIGRATE_DATABASE_URL" placeholder:"URL" help:"The database's direct address that db-migrate uses, if the other one is that of a pooler."`
	ListenDatabaseURL  string `group:"Database" env:"FASTPUBSUB_LISTEN_DATABASE_URL" placeholder:"URL" help:"The database's direct address for LISTEN, if the other one is that of a pooler."`
	JSON               bool   `name:"json" help:"Print one JSON document."`
}

// Help implements kong.HelpProvider.
func (doctorCommand) Help() string {
	return `It looks at the server, the schema, what holds back vacuum, subscriptions that lag, the slots of the log, and the way to
the database, and prints what it saw: ok, notice, warning or error, with what to do about it. It changes nothing.
It needs no superuser, and says what it was not shown and what to grant. It takes a minute at most.

The exit code is 0 if nothing is worse than a notice, else 1; 2 for bad settings.`
}

// errFound is the error of a command that has said all there is to say, and yet is to fail.
var errFound = errors.New("problems were found")

// Run implements the subcommand.
func (c *doctorCommand) Run(p *process) error {
	var bad badSettings
	main := c.pool(&bad, c.poolFlags)
	config := doctor.Config{Schema: c.schema(&bad)}
	optional := func(variable, url string) *pgx.ConnConfig {
		if url == "" {
			return nil
		}
		if config := parseURL(&bad, variable, url); config != nil {
			return config.ConnConfig
		}
		return nil
	}
	config.Migrate = optional("FASTPUBSUB_MIGRATE_DATABASE_URL", c.MigrateDatabaseURL)
	config.Listen = optional("FASTPUBSUB_LISTEN_DATABASE_URL", c.ListenDatabaseURL)
	if err := bad.err(); err != nil {
		return err
	}
	config.Database, config.Pool = main.ConnConfig, int(main.MaxConns)
	report := doctor.Examine(p.ctx, config)
	if err := c.print(p, report); err != nil {
		return err
	}
	if report.Severity > doctor.Notice {
		return errFound
	}
	return nil
}

func (c *doctorCommand) print(p *process, report *doctor.Report) error {
	if !c.JSON {
		return report.WriteText(p.stdout)
	}
	text, err := json.MarshalIndent(report, "", "  ")
	if err == nil {
		_, err = fmt.Fprintf(p.stdout, "%s\n", text)
	}
	return err
}
