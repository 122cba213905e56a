package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/internal/jsontext"
	"github.com/fastpubsub/fastpubsub/store"
)

type tailCommand struct {
	ID            string `arg:"" help:"The id of a topic or of a subscription."`
	As            string `enum:"topic,subscription," default:"" placeholder:"KIND" help:"What the id is of, if there are both: topic or subscription."`
	Filter        string `placeholder:"JSON" help:"Print only what this filter lets through, such as '{\"country\": [\"BR\"]}'."`
	Count         string `default:"0" placeholder:"N" help:"End after N messages. Default: never."`
	Ack           bool   `help:"Take messages out of the subscription as a consumer does, the waiting ones first, and ack those that were printed."`
	Consumer      string `default:"tail" help:"With --ack: who takes them, for people who look. Default: tail."`
	databaseFlags `embed:"" group:"Database"`
	logFlags      `embed:"" group:"Log"`
}

// Help implements kong.HelpProvider.
func (tailCommand) Help() string {
	return `Without --ack it only looks: it reads the log, so that it takes no message from anybody and leaves nothing behind, however it
ends. It prints what is published to the topic from now on, in the order of commits; for a subscription, what its topic gets
that its filter lets through.

With --ack it is a consumer of that subscription. A message is acked when it was printed; when the command is interrupted, it
gives the others back. One that is killed has its messages delivered again after their ack deadline.

It goes on when the database comes back after it was away. That whoever reads its output is gone it notices at the next message:
use --count rather than head.`
}

// The pauses of tail.
const (
	tailPause        = 200 * time.Millisecond // between looks
	tailRetryLongest = 5 * time.Second
	tailWait         = 20 * time.Second // for messages, with --ack
	tailEndTimeout   = 3 * time.Second  // to give messages back
	tailPage         = 16               // record batches that one statement reads
	tailBatch        = 100              // messages, with --ack
)

// A tail is one run of the command.
type tail struct {
	p      *process
	pool   *pgxpool.Pool
	broker *fastpubsub.Broker
	store  *store.Store
	logger *slog.Logger
	left   int // messages to print; -1 for all
	line   []byte
}

// errTailed ends a tail that has printed what it was to print.
var errTailed = errors.New("all printed")

// Run implements the subcommand. An interrupt is how it ends, and so is a reader of its output who goes away.
func (c *tailCommand) Run(p *process) error {
	var bad badSettings
	if isURL(c.ID) {
		bad.add("ID", "must be an id; a database URL belongs in FASTPUBSUB_DATABASE_URL")
	}
	var filter fastpubsub.Filter
	if c.Filter != "" {
		var err error
		if filter, err = fastpubsub.ParseFilter([]byte(c.Filter)); err != nil {
			bad.add("--filter", "%v", err)
		}
	}
	if c.Ack && c.Filter != "" {
		bad.add("--filter", "cannot be with --ack: what is not printed would have to be acked too")
	}
	if c.Ack && c.As == "topic" {
		bad.add("--ack", "is for a subscription")
	}
	if n := len([]rune(c.Consumer)); n < 1 || n > 128 {
		bad.add("--consumer", "must have 1 to 128 characters")
	}
	count := bad.integer("--count", c.Count, 0, 1_000_000_000)
	connect := c.pooled(&bad)
	logger := c.logger(&bad, p.stderr)
	if err := bad.err(); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE) // it would keep messages from being given back
	return connect(p.ctx, fastpubsub.Config{}, func(pool *pgxpool.Pool, broker *fastpubsub.Broker) error {
		t := &tail{p: p, pool: pool, broker: broker, store: store.New(c.DatabaseSchema), logger: logger, left: count}
		if count == 0 {
			t.left = -1
		}
		err := t.run(c, filter)
		if errors.Is(err, errTailed) || errors.Is(err, syscall.EPIPE) || p.ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	})
}

func (t *tail) run(c *tailCommand, filter fastpubsub.Filter) error {
	topicID, sub, err := t.find(c)
	if err != nil {
		return err
	}
	if c.Ack {
		return t.consume(c.ID, c.Consumer)
	}
	return t.follow(topicID, func(payload []byte) bool {
		return filter.Match(payload) && (sub == nil || sub.Filter.Match(payload))
	})
}

// find returns the topic to follow, and the subscription if the id is of one.
func (t *tail) find(c *tailCommand) (topicID string, sub *fastpubsub.Subscription, err error) {
	var isTopic bool
	if c.As != "subscription" && !c.Ack {
		_, err := t.broker.GetTopic(t.p.ctx, c.ID)
		if isTopic = err == nil; err != nil && !errors.Is(err, fastpubsub.ErrNotFound) {
			return "", nil, err
		}
	}
	if c.As != "topic" {
		s, err := t.broker.GetSubscription(t.p.ctx, c.ID)
		if err == nil {
			sub = &s
		} else if !errors.Is(err, fastpubsub.ErrNotFound) {
			return "", nil, err
		}
	}
	switch {
	case isTopic && sub != nil:
		return "", nil, fmt.Errorf("there are a topic and a subscription %q: say which with --as", c.ID)
	case isTopic:
		return c.ID, nil, nil
	case sub != nil:
		return sub.TopicID, sub, nil
	case c.As == "topic":
		return "", nil, fmt.Errorf("there is no topic %q", c.ID)
	case c.As == "subscription" || c.Ack:
		return "", nil, fmt.Errorf("there is no subscription %q", c.ID)
	}
	return "", nil, fmt.Errorf("there is neither a topic nor a subscription %q", c.ID)
}

// follow prints what is committed from now on.
func (t *tail) follow(topicID string, wanted func(payload []byte) bool) error {
	seen, err := t.store.Now(t.p.ctx, t.pool, topicID)
	if err != nil {
		return err
	}
	t.logger.Debug("following", "topic", topicID)
	var xid, base int64 // how far the way from seen to the next moment was gone
	var next store.Moment
	return t.persist(topicID, func() (pause bool, err error) {
		if next == (store.Moment{}) {
			now, err := t.store.Now(t.p.ctx, t.pool, topicID)
			if err != nil || now == seen {
				return true, err
			}
			if now.TopicNum != seen.TopicNum {
				return true, fmt.Errorf("it was deleted: %w", fastpubsub.ErrNotFound)
			}
			next = now
		}
		msgs, err := t.store.PublishedBetween(t.p.ctx, t.pool, seen, next, xid, base, tailPage)
		if err != nil {
			return true, err
		}
		for i := range msgs {
			msg := &msgs[i]
			if wanted([]byte(msg.Payload)) {
				if err := t.print(appendPublished(t.line[:0], topicID, msg)); err != nil {
					return false, err
				}
			}
			xid, base = msg.Xid, msg.Base
		}
		if len(msgs) == 0 {
			seen, next, xid, base = next, store.Moment{}, 0, 0
			return true, nil
		}
		return false, nil
	})
}

// appendPublished appends a message as JSON that the command publish can read with --envelopes.
func appendPublished(text []byte, topicID string, msg *store.LogMessage) []byte {
	text = append(text, `{"id":"`+uuid.UUID(msg.ID).String()+`","topic_id":`...)
	text = jsontext.AppendQuote(text, topicID)
	text = append(text, `,"payload":`...)
	text = append(text, msg.Payload...)
	text = append(text, `,"created_at":"`...)
	text = msg.CreatedAt.UTC().AppendFormat(text, time.RFC3339Nano)
	text = append(text, '"')
	if msg.Attributes != nil {
		text = append(text, `,"attributes":`...)
		text = append(text, *msg.Attributes...)
	}
	return append(text, '}')
}

// print prints a message as a line.
func (t *tail) print(text []byte) error {
	t.line = text // to be used again
	if _, err := io.WriteString(t.p.stdout, lineBreaks.Replace(string(text))+"\n"); err != nil {
		return err
	}
	if t.left > 0 {
		if t.left--; t.left == 0 {
			return errTailed
		}
	}
	return nil
}

// persist calls step until it fails for good, with a pause when step says so. A database that is away is waited for.
func (t *tail) persist(id string, step func() (pause bool, err error)) error {
	failures := 0
	for {
		pause, err := step()
		wait := tailPause
		switch {
		case t.p.ctx.Err() != nil:
			return t.p.ctx.Err()
		case err == nil:
			failures = 0
		case errors.Is(err, errTailed), errors.Is(err, syscall.EPIPE), errors.Is(err, os.ErrClosed), errors.Is(err, fastpubsub.ErrInvalid),
			errors.Is(err, fastpubsub.ErrNotFound), errors.Is(err, fastpubsub.ErrSchemaOutdated), errors.Is(err, fastpubsub.ErrBinaryOutdated):
			return err
		default:
			if failures == 0 {
				t.logger.Warn("interrupted, trying again", "id", id, "error", err)
			}
			failures = min(failures+1, 10)
			wait = min(tailPause<<failures, tailRetryLongest)
			wait = wait/2 + rand.N(wait/2)
			pause = true
		}
		if !pause {
			continue
		}
		select {
		case <-t.p.ctx.Done():
			return t.p.ctx.Err()
		case <-time.After(wait):
		}
	}
}

// consume takes messages and acks them when they are printed. What was printed is acked before more is taken: an ack that failed is
// tried again, and a count holds.
func (t *tail) consume(subID, consumer string) error {
	var printed []fastpubsub.ID // and not acked
	ack := func(ctx context.Context) error {
		if len(printed) == 0 {
			return nil
		}
		if _, err := t.broker.Ack(ctx, subID, printed); err != nil {
			return fmt.Errorf("%d messages were printed and not acked: %w", len(printed), err)
		}
		printed = printed[:0]
		return nil
	}
	return t.persist(subID, func() (pause bool, err error) {
		if err := ack(t.p.ctx); err != nil {
			return true, err
		}
		if t.left == 0 {
			return false, errTailed
		}
		most := tailBatch
		if t.left > 0 {
			most = min(most, t.left)
		}
		msgs, err := t.broker.Consume(t.p.ctx, subID, fastpubsub.ConsumeOptions{Consumer: consumer, Max: most, Wait: tailWait})
		if err != nil {
			return true, err
		}
		var rest []fastpubsub.Delivery
		for i := range msgs {
			if err == nil && t.p.ctx.Err() == nil {
				err = t.print(httpapi.AppendMessage(t.line[:0], &msgs[i]))
				if err == nil || errors.Is(err, errTailed) {
					printed = append(printed, msgs[i].ID)
					continue
				}
			}
			rest = append(rest, msgs[i].Delivery)
		}
		// Also when it was interrupted.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.p.ctx), tailEndTimeout)
		defer cancel()
		if ackErr := ack(ctx); ackErr != nil {
			return true, ackErr
		}
		if len(rest) > 0 {
			if _, giveErr := t.broker.Extend(ctx, subID, rest, 0); giveErr != nil {
				return true, giveErr
			}
		}
		return false, err
	})
}
