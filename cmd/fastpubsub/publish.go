package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/fastpubsub/fastpubsub"
)

type publishCommand struct {
	Topic         string            `arg:"" help:"The topic's id."`
	Payloads      []string          `arg:"" optional:"" name:"payload" help:"JSON objects. Without any, stdin is read: one JSON object a line."`
	Attribute     map[string]string `short:"a" placeholder:"KEY=VALUE" mapsep:"none" help:"An attribute of all messages; may be given several times."`
	Envelopes     bool              `help:"Each JSON object is {\"payload\": {...}, \"attributes\": {...}}, as tail prints them; others of its keys are passed over."`
	Batch         string            `default:"1000" placeholder:"N" help:"How many messages of stdin to publish together at most, 1 to 10000. What is there is not kept waiting for more. Default: 1000."`
	databaseFlags `embed:"" group:"Database"`
}

// Help implements kong.HelpProvider.
func (publishCommand) Help() string {
	return `It prints the id of each message, in the order of input, when it is durable. Arguments are published together, all or none;
so is each batch of stdin. It ends with the first batch that fails: what has an id was published.`
}

// Run implements the subcommand.
func (c *publishCommand) Run(p *process) error {
	var bad badSettings
	if isURL(c.Topic) {
		bad.add("TOPIC", "must be an id; a database URL belongs in FASTPUBSUB_DATABASE_URL")
	}
	batch := bad.integer("--batch", c.Batch, 1, 10_000)
	connect := c.connection(&bad)
	msgs := make([]fastpubsub.NewMessage, len(c.Payloads))
	for i, text := range c.Payloads {
		var err error
		if msgs[i], err = c.message([]byte(text)); err != nil {
			bad.add(fmt.Sprintf("PAYLOAD %d", i+1), "%v", err)
		}
	}
	if err := bad.err(); err != nil {
		return err
	}
	return connect(p.ctx, func(broker *fastpubsub.Broker) error {
		if len(msgs) > 0 {
			return c.publish(p, broker, msgs, func(i int) string { return fmt.Sprintf("PAYLOAD %d", i+1) })
		}
		return c.fromLines(p, broker, batch)
	})
}

// message reads an argument or a line. Whether a payload may be published is for the broker to say.
func (c *publishCommand) message(text []byte) (fastpubsub.NewMessage, error) {
	msg := fastpubsub.NewMessage{Payload: text, Attributes: c.Attribute}
	if !c.Envelopes {
		return msg, nil
	}
	var envelope struct {
		Payload    json.RawMessage   `json:"payload"`
		Attributes map[string]string `json:"attributes"`
	}
	switch err := json.Unmarshal(text, &envelope); {
	case err != nil:
		return msg, errors.New(`must be {"payload": {...}, "attributes": {"KEY": "VALUE"}}`)
	case envelope.Payload == nil:
		return msg, errors.New("has no payload")
	}
	msg.Payload = envelope.Payload
	if len(c.Attribute) > 0 && envelope.Attributes == nil {
		envelope.Attributes = make(map[string]string, len(c.Attribute))
	}
	for key, value := range c.Attribute {
		envelope.Attributes[key] = value
	}
	msg.Attributes = envelope.Attributes
	return msg, nil
}

// publish publishes and prints the ids. name says what message i is called where it came from.
func (c *publishCommand) publish(p *process, broker *fastpubsub.Broker, msgs []fastpubsub.NewMessage, name func(i int) string) error {
	ids, err := broker.Publish(p.ctx, c.Topic, msgs...)
	var invalid *fastpubsub.InvalidError
	switch {
	case errors.Is(err, fastpubsub.ErrNotFound):
		return fmt.Errorf("there is no topic %q", c.Topic)
	case errors.As(err, &invalid):
		var bad badSettings
		for _, problem := range invalid.Problems {
			var i int
			if _, err := fmt.Sscanf(problem.Field, "messages.%d.", &i); err == nil {
				bad.add(name(i), "%s: %s", problem.Field[strings.LastIndexByte(problem.Field, '.')+1:], problem.Msg)
			} else {
				bad.add(problem.Field, "%s", problem.Msg)
			}
		}
		return bad
	case err != nil:
		return err
	}
	var text strings.Builder
	for _, id := range ids {
		text.WriteString(id.String() + "\n")
	}
	_, err = io.WriteString(p.stdout, text.String())
	return err
}

// maxLineBytes lets the largest payload through, and its envelope.
const maxLineBytes = 32 << 20

// maxBatchBytes ends a batch of lines that is not full yet.
const maxBatchBytes = 8 << 20

// A line of stdin that is not blank.
type line struct {
	number int // from 1
	text   []byte
}

// fromLines publishes what comes, in batches.
func (c *publishCommand) fromLines(p *process, broker *fastpubsub.Broker, batch int) error {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	lines, ended := make(chan line, 64), make(chan error, 1)
	go func() { // it may be reading when the command ends: nobody can wait for that
		defer close(lines)
		ended <- readLines(ctx, p.stdin, lines)
	}()
	for more := true; more; {
		var msgs []fastpubsub.NewMessage
		var numbers []int
		size := 0
		take := func(l line) error {
			msg, err := c.message(l.text)
			if err != nil {
				return badSettings{fmt.Sprintf("line %d: %v", l.number, err)}
			}
			msgs, numbers, size = append(msgs, msg), append(numbers, l.number), size+len(l.text)
			return nil
		}
		select {
		case l, ok := <-lines:
			if more = ok; ok {
				if err := take(l); err != nil {
					return err
				}
			}
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
		for waits := more; waits && len(msgs) < batch && size < maxBatchBytes; {
			select {
			case l, ok := <-lines:
				if waits = ok; ok {
					if err := take(l); err != nil {
						return err
					}
				}
			default:
				waits = false
			}
		}
		if len(msgs) == 0 {
			continue
		}
		if err := c.publish(p, broker, msgs, func(i int) string { return fmt.Sprintf("line %d", numbers[i]) }); err != nil {
			return err
		}
	}
	return <-ended
}

// readLines sends lines until there are no more, or ctx ends.
func readLines(ctx context.Context, from io.Reader, lines chan<- line) error {
	scanner := bufio.NewScanner(from)
	scanner.Buffer(make([]byte, 0, 64<<10), maxLineBytes)
	for number := 1; scanner.Scan(); number++ {
		if len(strings.TrimSpace(scanner.Text())) == 0 {
			continue
		}
		select {
		case lines <- line{number, append([]byte(nil), scanner.Bytes()...)}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if errors.Is(scanner.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line of stdin has more than %d bytes", maxLineBytes)
	}
	return scanner.Err()
}
