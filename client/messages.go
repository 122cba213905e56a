package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/errtext"
)

// Limits of the API.
const (
	maxBatch   = 100   // messages that one request takes
	maxConsume = 1_000 // that Consume may be asked for, as a Broker's
	maxWait    = 30 * time.Second
	maxIDs     = 1_000 // of messages in one request, where the server has no other limit
	maxAttempt = math.MaxInt32
)

// Publish publishes messages to a topic, all or none, and returns their ids in the same order. One request has all of them: 1
// to 10,000 messages of 16 MiB in all, where the server has no other limits; it never splits them. None is no error, and asks
// whether there is such a topic.
//
// It is not repeated after ErrUnavailable, unless no connection was made: the messages may have been published. Who publishes
// them again should let consumers see, by an id in the payload, that they are the same.
//
// It returns ErrNotFound if there is no such topic and an InvalidError that names each message which was refused.
func (c *Client) Publish(ctx context.Context, topicID string, msgs ...fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
	path, err := pathOf(topics, topicID)
	if err != nil {
		return nil, err
	}
	body, err := publishBody(msgs)
	if err != nil {
		return nil, fmt.Errorf("publish to %q: %w", topicID, err)
	}
	var answer struct{ IDs []fastpubsub.ID }
	if err := c.call(ctx, request{method: http.MethodPost, path: path + "/messages", body: body}, &answer); err != nil {
		return nil, err
	}
	if len(answer.IDs) != len(msgs) {
		return nil, fmt.Errorf("publish to %q: the server answers with %d ids for %d messages", topicID, len(answer.IDs), len(msgs))
	}
	return answer.IDs, nil
}

// publishBody writes payloads as they are. They are checked first: what is not one object could be several messages.
func publishBody(msgs []fastpubsub.NewMessage) ([]byte, error) {
	size := 16
	for i := range msgs {
		size += len(msgs[i].Payload) + 16
	}
	body := append(make([]byte, 0, size), `{"messages":[`...)
	var p problems
	for i, msg := range msgs {
		err := msg.Check()
		if invalid := (*fastpubsub.InvalidError)(nil); errors.As(err, &invalid) {
			for _, problem := range invalid.Problems {
				problem.Field = "messages." + strconv.Itoa(i) + "." + problem.Field
				p = append(p, problem)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("message %d: %w", i, err)
		}
		if i > 0 {
			body = append(body, ',')
		}
		body = append(append(body, `{"payload":`...), msg.Payload...)
		if len(msg.Attributes) > 0 {
			text, err := json.Marshal(msg.Attributes)
			if err != nil {
				return nil, fmt.Errorf("message %d: attributes: %w", i, err)
			}
			body = append(append(body, `,"attributes":`...), text...)
		}
		body = append(body, '}')
	}
	return append(body, "]}"...), p.err()
}

// wireMessage is a message, or a dead letter, in JSON.
type wireMessage struct {
	ID               fastpubsub.ID     `json:"id"`
	SubscriptionID   string            `json:"subscription_id"`
	Payload          json.RawMessage   `json:"payload"`
	DeliveryAttempts int               `json:"delivery_attempts"`
	CreatedAt        time.Time         `json:"created_at"`
	Attributes       map[string]string `json:"attributes"`
	LastError        string            `json:"last_error"` // null leaves it empty
	DeadAt           time.Time         `json:"dead_at"`
}

func (w wireMessage) message() fastpubsub.Message {
	return fastpubsub.Message{
		Delivery:       fastpubsub.Delivery{ID: w.ID, DeliveryAttempts: w.DeliveryAttempts},
		SubscriptionID: w.SubscriptionID, Payload: w.Payload, Attributes: w.Attributes, CreatedAt: w.CreatedAt.UTC(),
	}
}

func (w wireMessage) deadLetter() fastpubsub.DeadLetter {
	return fastpubsub.DeadLetter{Message: w.message(), LastError: w.LastError, DeadAt: w.DeadAt.UTC()}
}

// Consume takes messages from a subscription and counts one delivery attempt for each, as [fastpubsub.Broker.Consume] does. Of a
// Max above 100, up to 1,000, it takes no more than 100. It waits up to options.Wait, which is rounded up to whole seconds, for the
// first, in requests of up to 30 seconds; none is an empty slice and no error. Single cannot be asked for.
//
// When ctx ends, an answer that has begun to come is read to its end, for 5 seconds at most, and its messages are returned. Else the
// request is cancelled, and the server gives back what it takes from then on, at once and without counting the attempt. What it has
// sent already, and what an answer that breaks off had, comes back after its ack deadline.
//
// It returns ErrNotFound if there is no such subscription, ErrBusy if other consumers held it all the time, and an
// InvalidError for options out of range.
func (c *Client) Consume(ctx context.Context, subscriptionID string, options fastpubsub.ConsumeOptions) ([]fastpubsub.Message, error) {
	path, err := pathOf(subscriptions, subscriptionID)
	if err != nil {
		return nil, err
	}
	query, err := consumeQuery(options)
	if err != nil {
		return nil, fmt.Errorf("consume from %q: %w", subscriptionID, err)
	}
	start := time.Now()
	for {
		began := time.Now()
		wait := min(wholeSeconds(options.Wait-began.Sub(start)), maxWait)
		query.Set("wait_seconds", strconv.FormatInt(int64(wait/time.Second), 10))
		var answer struct{ Data []wireMessage }
		err := c.call(ctx, request{method: http.MethodGet, path: path + "/messages", query: query, wait: wait, takes: true}, &answer)
		if n, atoi := strconv.Atoi(query.Get("batch_size")); errors.Is(err, errTooLarge) && n > 1 && atoi == nil {
			query.Set("batch_size", strconv.Itoa(n/2))
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(answer.Data) > 0 {
			msgs := make([]fastpubsub.Message, len(answer.Data))
			for i, w := range answer.Data {
				msgs[i] = w.message()
			}
			return msgs, nil
		}
		left := options.Wait - time.Since(start)
		if left <= 0 {
			return nil, nil
		}
		if time.Since(began) < wait/2 { // the server is stopping; perhaps another one answers
			err = sleep(ctx, min(left, stoppingPause/2+rand.N(stoppingPause)))
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("consume from %q: %w", subscriptionID, err)
		}
	}
}

const stoppingPause = time.Second

func consumeQuery(options fastpubsub.ConsumeOptions) (url.Values, error) {
	var p problems
	query := url.Values{"consumer_id": {options.Consumer}}
	if options.Single {
		p.add("single", "value_error", "cannot be asked for over the REST API")
	}
	if options.Wait < 0 {
		p.add("wait_seconds", "greater_than_equal", "must be at least 0, not %v", options.Wait)
	}
	switch {
	case options.Max > maxConsume:
		p.add("batch_size", "less_than_equal", "must be at most %d, not %d", maxConsume, options.Max)
	case options.Max != 0:
		query.Set("batch_size", strconv.Itoa(min(options.Max, maxBatch)))
	default:
		query.Set("batch_size", "10")
	}
	if options.AckDeadline != 0 {
		query.Set("ack_deadline_seconds", strconv.FormatInt(p.seconds("ack_deadline_seconds", options.AckDeadline), 10))
	}
	return query, p.err()
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return (d-1)/time.Second*time.Second + time.Second
}

// count is the answer of what changes messages.
type count struct{ Count int }

// change sends messages, up to 1,000 in a request, and returns how many were changed. A server may be set to take fewer: then it
// sends the halves of what was refused.
func change[T any](c *Client, subscriptionID string, which []T, send func(path string, part []T) (int, error)) (int, error) {
	path, err := pathOf(subscriptions, subscriptionID)
	if err != nil {
		return 0, err
	}
	n, size := 0, maxIDs
	for first := true; first || len(which) > 0; first = false { // none asks whether there is such a subscription
		part := which[:min(size, len(which))]
		changed, err := send(path, part)
		if len(part) > 1 && tooMany(err) {
			size = len(part) / 2
			continue
		}
		if n += changed; err != nil {
			return n, err
		}
		which = which[len(part):]
	}
	return n, nil
}

// tooMany says that a request was refused for its length.
func tooMany(err error) bool {
	var invalid *fastpubsub.InvalidError
	return errors.As(err, &invalid) && len(invalid.Problems) == 1 && invalid.Problems[0].Type == "too_long"
}

// Ack marks messages as done, as [fastpubsub.Broker.Ack] does. It sends up to 1,000 ids in a request: an error may come
// after some were acked. It returns how many this call acked, as far as it knows: after a try that got no answer too few.
//
// It returns ErrNotFound if there is no such subscription.
func (c *Client) Ack(ctx context.Context, subscriptionID string, ids []fastpubsub.ID) (int, error) {
	return c.byID(ctx, subscriptionID, "/acks", ids, true)
}

// byID changes messages by their ids alone.
func (c *Client) byID(ctx context.Context, subscriptionID, route string, ids []fastpubsub.ID, safe bool) (int, error) {
	return change(c, subscriptionID, ids, func(path string, part []fastpubsub.ID) (int, error) {
		if part == nil {
			part = []fastpubsub.ID{}
		}
		var answer count
		err := c.post(ctx, path+route, part, &answer, safe)
		return answer.Count, err
	})
}

// wireDelivery is a delivery in JSON.
type wireDelivery struct {
	ID               fastpubsub.ID `json:"id"`
	DeliveryAttempts int           `json:"delivery_attempts"`
}

// wireChange is the body of nacks and leases: either IDs or Deliveries, and what is to become of them.
type wireChange struct {
	IDs        []fastpubsub.ID `json:"ids,omitzero"` // not nil, but perhaps empty
	Deliveries []wireDelivery  `json:"deliveries,omitempty"`

	DelaySeconds *int64 `json:"delay_seconds,omitempty"`
	Error        string `json:"error,omitempty"`
	DeadLetter   bool   `json:"dead_letter,omitempty"`
	Uncounted    bool   `json:"uncounted,omitempty"`

	AckDeadlineSeconds *int64 `json:"ack_deadline_seconds,omitempty"`
}

// byDelivery changes messages: those whose delivery is named, and after them those for which any will do. safe is whether
// that may be done twice to a delivery that is named.
func (c *Client) byDelivery(ctx context.Context, subscriptionID, route string, deliveries []fastpubsub.Delivery, body wireChange, safe bool) (int, error) {
	ids := []fastpubsub.ID{}
	var named []wireDelivery
	for _, d := range deliveries {
		switch {
		case d.DeliveryAttempts == 0:
			ids = append(ids, d.ID)
		case d.DeliveryAttempts > 0 && d.DeliveryAttempts <= maxAttempt: // no delivery has another number
			named = append(named, wireDelivery(d))
		}
	}
	n := 0
	if len(named) > 0 {
		changed, err := change(c, subscriptionID, named, func(path string, part []wireDelivery) (int, error) {
			body.Deliveries = part
			var answer count
			err := c.post(ctx, path+route, body, &answer, safe)
			return answer.Count, err
		})
		if n += changed; err != nil || len(ids) == 0 {
			return n, err
		}
		body.Deliveries = nil
	}
	changed, err := change(c, subscriptionID, ids, func(path string, part []fastpubsub.ID) (int, error) {
		body.IDs = part
		var answer count
		err := c.post(ctx, path+route, body, &answer, false)
		return answer.Count, err
	})
	return n + changed, err
}

// Nack gives messages back that failed, as [fastpubsub.Broker.Nack] does. It sends up to 1,000 in a request, as Ack.
//
// It returns ErrNotFound if there is no such subscription and an InvalidError for options out of range.
func (c *Client) Nack(ctx context.Context, subscriptionID string, deliveries []fastpubsub.Delivery, options fastpubsub.NackOptions) (int, error) {
	var p problems
	// The API takes neither NUL nor more than fits in a body.
	body := wireChange{Error: errtext.Keep(options.Error), DeadLetter: options.DeadLetter, Uncounted: options.Uncounted}
	if options.Immediate && options.Delay != 0 {
		p.add("delay_seconds", "value_error", "must be 0 when the delivery is to be immediate, not %v", options.Delay)
	} else if options.Immediate || options.Delay != 0 {
		delay := p.seconds("delay_seconds", options.Delay)
		body.DelaySeconds = &delay
	}
	if err := p.err(); err != nil {
		return 0, fmt.Errorf("nack on %q: %w", subscriptionID, err)
	}
	// What is not counted is delivered again under the same number.
	return c.byDelivery(ctx, subscriptionID, "/nacks", deliveries, body, !options.Uncounted)
}

// Extend gives messages another ack deadline, as [fastpubsub.Broker.Extend] does; zero gives them back. It sends up to 1,000 in
// a request, as Ack.
//
// It returns ErrNotFound if there is no such subscription and an InvalidError for a deadline out of range.
func (c *Client) Extend(ctx context.Context, subscriptionID string, deliveries []fastpubsub.Delivery, ackDeadline time.Duration) (int, error) {
	var p problems
	deadline := p.seconds("ack_deadline_seconds", ackDeadline)
	if err := p.err(); err != nil {
		return 0, fmt.Errorf("extend on %q: %w", subscriptionID, err)
	}
	return c.byDelivery(ctx, subscriptionID, "/leases", deliveries, wireChange{AckDeadlineSeconds: &deadline}, deadline > 0)
}

// DeadLetters returns the dead letters of a subscription, those that were given up first first: up to 100, whatever the limit.
// That fewer than the limit come does not mean that there are no more; that none comes does. It returns ErrNotFound if there is
// no such subscription and an InvalidError for options out of range.
func (c *Client) DeadLetters(ctx context.Context, subscriptionID string, options fastpubsub.ListOptions) ([]fastpubsub.DeadLetter, error) {
	path, err := pathOf(subscriptions, subscriptionID)
	if err != nil {
		return nil, err
	}
	if options.Limit == 0 {
		options.Limit = 10
	}
	options.Limit = min(options.Limit, pageLimit)
	return list(ctx, c, path+"/dlq", options, wireMessage.deadLetter)
}

// Reprocess takes messages out of the dead letter queue, as [fastpubsub.Broker.Reprocess] does. It sends up to 1,000 ids in a
// request, as Ack, and is not repeated after ErrUnavailable.
//
// It returns ErrNotFound if there is no such subscription.
func (c *Client) Reprocess(ctx context.Context, subscriptionID string, ids []fastpubsub.ID) (int, error) {
	return c.byID(ctx, subscriptionID, "/dlq/reprocess", ids, false)
}
