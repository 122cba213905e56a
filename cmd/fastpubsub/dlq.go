package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

type dlqCommand struct {
	List      dlqList      `cmd:"" help:"Print dead letters, the oldest first, one JSON object a line."`
	Reprocess dlqReprocess `cmd:"" help:"Deliver dead letters again, as if for the first time."`
	Purge     dlqPurge     `cmd:"" help:"Remove dead letters for good."`
}

// A queue is the dead letter queue that a command is for.
type queue struct {
	Subscription  string `arg:"" help:"The subscription's id."`
	databaseFlags `embed:"" group:"Database"`
}

// connection is that of databaseFlags, and says which subscription there is not.
func (q *queue) connection(b *badSettings) func(ctx context.Context, use func(*fastpubsub.Broker) error) error {
	if isURL(q.Subscription) {
		b.add("SUBSCRIPTION", "must be an id; a database URL belongs in FASTPUBSUB_DATABASE_URL")
	}
	connect := q.databaseFlags.connection(b)
	return func(ctx context.Context, use func(*fastpubsub.Broker) error) error {
		err := connect(ctx, use)
		if errors.Is(err, fastpubsub.ErrNotFound) {
			return fmt.Errorf("there is no subscription %q", q.Subscription)
		}
		return err
	}
}

// isURL reports whether an argument may be a database URL, which is not to be repeated: it may have a password.
func isURL(argument string) bool { return strings.Contains(argument, "://") }

type dlqList struct {
	queue  `embed:""`
	Offset string `default:"0" help:"How many to pass over."`
	Limit  string `default:"10" help:"How many to print at most, 1 to 1000."`
}

// lineBreaks makes JSON text a line. Strings have no line breaks in them, so it only changes white space.
var lineBreaks = strings.NewReplacer("\n", " ", "\r", " ")

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
			text := httpapi.AppendDeadLetter(nil, &letters[i])
			if _, err := fmt.Fprintln(p.stdout, lineBreaks.Replace(string(text))); err != nil {
				return err
			}
		}
		return nil
	})
}

// deadLetters are those that a command is for.
type deadLetters struct {
	queue `embed:""`
	IDs   []string `arg:"" optional:"" name:"id" help:"The messages' ids, as list prints them."`
	All   bool     `help:"All that are there now, instead of ids."`
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
func (c *deadLetters) change(p *process, run func(*fastpubsub.Broker, []fastpubsub.ID) (int, error)) error {
	var bad badSettings
	connect := c.connection(&bad)
	ids := c.parse(&bad)
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
		step := func(ids []fastpubsub.ID) error {
			n, err := run(broker, ids)
			total += n
			return err
		}
		if c.All {
			return c.all(p.ctx, broker, step)
		}
		for part := range slices.Chunk(ids, 1000) {
			if err := step(part); err != nil {
				return err
			}
		}
		return nil
	})
}

// parse reads the ids.
func (c *deadLetters) parse(b *badSettings) []fastpubsub.ID {
	if c.All == (len(c.IDs) > 0) {
		b.add("ID", "must be given, or --all, and not both")
	}
	ids := make([]fastpubsub.ID, len(c.IDs))
	for i, text := range c.IDs {
		id, err := fastpubsub.ParseID(text)
		switch {
		case err == nil:
			ids[i] = id
		case isURL(text):
			b.add("ID", "must be a UUID; a database URL belongs in FASTPUBSUB_DATABASE_URL")
		default:
			b.add("ID", "must be a UUID, not %q", text)
		}
	}
	return ids
}

// all calls step with the ids of as many dead letters as there are now. What dies meanwhile is left, so messages that die
// again at once do not keep it going.
func (c *deadLetters) all(ctx context.Context, broker *fastpubsub.Broker, step func([]fastpubsub.ID) error) error {
	metrics, err := broker.Metrics(ctx, c.Subscription)
	if err != nil {
		return err
	}
	const most = 100 // payloads come with them
	for left := int(metrics.DeadLetters); left > 0; {
		letters, err := broker.DeadLetters(ctx, c.Subscription, fastpubsub.ListOptions{Limit: min(most, left)})
		if err != nil || len(letters) == 0 {
			return err
		}
		left -= len(letters)
		ids := make([]fastpubsub.ID, len(letters))
		for i := range letters {
			ids[i] = letters[i].ID
		}
		if err := step(ids); err != nil {
			return err
		}
	}
	return nil
}
