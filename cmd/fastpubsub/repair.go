package main

import "github.com/fastpubsub/fastpubsub"

type repairCommand struct {
	databaseFlags `embed:"" group:"Database"`
	logFlags      `embed:"" group:"Log"`
}

// Run implements the subcommand.
func (c *repairCommand) Run(p *process) error {
	var bad badSettings
	connect := c.connection(&bad)
	logger := c.logger(&bad, p.stderr)
	if err := bad.err(); err != nil {
		return err
	}
	return connect(p.ctx, func(broker *fastpubsub.Broker) error {
		repaired, err := broker.Repair(p.ctx)
		switch {
		case err != nil:
			return err
		case !repaired.Restored:
			logger.Info("nothing to repair")
		default:
			logger.Info("repaired", "messages", repaired.Messages)
		}
		return nil
	})
}
