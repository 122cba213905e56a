package main

import (
	"errors"
	"fmt"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

type dlqCommand struct {
	List      dlqList      `cmd:"" help:"Print dead letters, the oldest first, one JSON object a line."`
	Reprocess dlqReprocess `cmd:"" help:"Deliver dead letters again, as if for the first time."`
	Purge     dlqPurge     `cmd:"" help:"Remove dead letters for good."`
}

type dlqList struct {
	Subscription  string `arg:"" help:"The subscription's id."`
	Offset        string `default:"0" help:"How many to pass over."`
	Limit         string `default:"10" help:"How many to print at most, 1 to 1000."`
	databaseFlags `embed:"" group:"Database"`
}

// Run implements the subcommand.
func (c *dlqList) Run(p *process) error {
	var bad badSettings
	options := fastpubsub.ListOptions{
		Offset: bad.integer("--offset", c.Offset, 0, 1_000_000_000),
		Limit:  bad.integer("--limit", c.Limit, 1, 1000),
	}
	connect := c.connection(&bad)
	if err := bad.err(); err != nil {
		return err
	}
	return connect(p.ctx, func(broker *fastpubsub.Broker) error {
		letters, err := broker.DeadLetters(p.ctx, c.Subscription, options)
		if err != nil {
			return err
		}
		for i := range letters {
			if _, err := p.stdout.Write(append(httpapi.AppendDeadLetter(nil, &letters[i]), '\n')); err != nil {
				return err
			}
		}
		return nil
	})
}

// deadLetters are those that a command is for.
type deadLetters struct {
	Subscription  string   `arg:"" help:"The subscription's id."`
	IDs           []string `arg:"" optional:"" name:"id" help:"The messages' ids, as list prints them."`
	All           bool     `help:"All that are there now, instead of ids."`
	databaseFlags `embed:"" group:"Database"`
}

type dlqReprocess struct {
	deadLetters `embed:""`
}

// Run implements the subcommand.
func (c *dlqReprocess) Run(p *process) error {
	return c.change(p, func(broker *fastpubsub.Broker, ids []fastpubsub.ID) (int, error) {
		return broker.Reprocess(p.ctx, c.Subscription, ids)
	})
}

type dlqPurge struct {
	deadLetters `embed:""`
}

// Run implements the subcommand.
func (c *dlqPurge) Run(p *process) error {
	return c.change(p, func(broker *fastpubsub.Broker, ids []fastpubsub.ID) (int, error) {
		return broker.Purge(p.ctx, c.Subscription, ids)
	})
}

// change does something with dead letters and prints with how many, also if that failed in the middle.
func (c *deadLetters) change(p *process, run func(*fastpubsub.Broker, []fastpubsub.ID) (int, error)) (err error) {
	var bad badSettings
	ids := make([]fastpubsub.ID, len(c.IDs))
	for i, text := range c.IDs {
		if ids[i], err = fastpubsub.ParseID(text); err != nil {
			bad.add("ID", "must be a UUID, not %q", text)
		}
	}
	if c.All == (len(ids) > 0) {
		bad.add("ID", "must be given, or --all, and not both")
	}
	connect := c.connection(&bad)
	if err := bad.err(); err != nil {
		return err
	}
	return connect(p.ctx, func(broker *fastpubsub.Broker) (err error) {
		total := 0
		defer func() {
			if err == nil || total > 0 {
				fmt.Fprintf(p.stdout, "count=%d\n", total)
			}
		}()
		const step = 1000
		if !c.All {
			for len(ids) > 0 {
				part := ids[:min(step, len(ids))]
				ids = ids[len(part):]
				n, err := run(broker, part)
				if total += n; err != nil {
					return err
				}
			}
			return nil
		}
		// As many as there are now: what dies meanwhile is left, and so a message that dies at once ends nothing.
		metrics, err := broker.Metrics(p.ctx, c.Subscription)
		if err != nil {
			return err
		}
		for total < int(metrics.DeadLetters) {
			letters, err := broker.DeadLetters(p.ctx, c.Subscription, fastpubsub.ListOptions{Limit: min(step, int(metrics.DeadLetters)-total)})
			if err != nil || len(letters) == 0 {
				return err
			}
			for i := range letters {
				ids = append(ids, letters[i].ID)
			}
			n, err := run(broker, ids)
			if total += n; err != nil {
				return err
			}
			if n == 0 {
				return errors.New("others work on the same dead letters")
			}
			ids = ids[:0]
		}
		return nil
	})
}
