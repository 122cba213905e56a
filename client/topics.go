package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/idrule"
)

// pathOf is the path of an object. What can be no id is not found without asking: in a path it could be something else.
func pathOf(collection, id string) (string, error) {
	if kind, _ := idrule.Check(id); kind != "" {
		return "", fmt.Errorf("%s %q: %w", collection, id, fastpubsub.ErrNotFound)
	}
	return "/" + collection + "/" + id, nil
}

const (
	topics        = "topics"
	subscriptions = "subscriptions"
)

// object calls for an object without a body.
func (c *Client) object(ctx context.Context, method, collection, id, more string, into any) error {
	path, err := pathOf(collection, id)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: method, path: path + more, safe: method == http.MethodGet}, into)
}

// post sends a body that can be marshalled.
func (c *Client) post(ctx context.Context, path string, body, into any, safe bool) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	return c.call(ctx, request{method: http.MethodPost, path: path, body: text, safe: safe}, into)
}

// pageLimit is the longest list that the API has in one answer.
const pageLimit = 100

// list gets a list in as many parts as it takes, each element by its wire form.
func list[W, T any](ctx context.Context, c *Client, path string, options fastpubsub.ListOptions, of func(W) T) ([]T, error) {
	if options.Limit == 0 {
		options.Limit = 10
	}
	all := []T{}
	for {
		limit := min(options.Limit-len(all), pageLimit)
		var page struct{ Data []W }
		err := c.call(ctx, request{method: http.MethodGet, path: path, safe: true, query: url.Values{
			"offset": {strconv.Itoa(options.Offset + len(all))}, "limit": {strconv.Itoa(limit)},
		}}, &page)
		if err != nil {
			return nil, err
		}
		for _, w := range page.Data {
			all = append(all, of(w))
		}
		if len(page.Data) < limit || len(all) >= options.Limit {
			return all, nil
		}
	}
}

type wireTopic struct {
	ID        string    `json:"id"`
	CreatedAt time.Time `json:"created_at"`
}

func (w wireTopic) topic() fastpubsub.Topic {
	return fastpubsub.Topic{ID: w.ID, CreatedAt: w.CreatedAt.UTC()}
}

// CreateTopic creates a topic. It returns ErrExists if the id is taken and an InvalidError for an id that is not one.
func (c *Client) CreateTopic(ctx context.Context, id string) (fastpubsub.Topic, error) {
	var w wireTopic
	err := c.post(ctx, "/topics", map[string]string{"id": id}, &w, false)
	return w.topic(), err
}

// GetTopic returns ErrNotFound if there is no such topic.
func (c *Client) GetTopic(ctx context.Context, id string) (fastpubsub.Topic, error) {
	var w wireTopic
	err := c.object(ctx, http.MethodGet, topics, id, "", &w)
	return w.topic(), err
}

// ListTopics returns topics in the order of their ids, bytewise. Lists of more than 100 take a request for each 100: what
// changes meanwhile may come twice, or be missed.
func (c *Client) ListTopics(ctx context.Context, options fastpubsub.ListOptions) ([]fastpubsub.Topic, error) {
	return list(ctx, c, "/topics", options, wireTopic.topic)
}

// DeleteTopic deletes a topic with its subscriptions and all that they have not delivered. It returns ErrNotFound if there is
// no such topic.
func (c *Client) DeleteTopic(ctx context.Context, id string) error {
	return c.object(ctx, http.MethodDelete, topics, id, "", nil)
}

// wireSubscription is a subscription in JSON. What is left out of a new one is the server's to choose.
type wireSubscription struct {
	ID                  string            `json:"id"`
	TopicID             string            `json:"topic_id"`
	Filter              fastpubsub.Filter `json:"filter"`
	MaxDeliveryAttempts int               `json:"max_delivery_attempts,omitempty"`
	BackoffMinSeconds   int64             `json:"backoff_min_seconds,omitempty"`
	BackoffMaxSeconds   int64             `json:"backoff_max_seconds,omitempty"`
	AckDeadlineSeconds  int64             `json:"ack_deadline_seconds,omitempty"`
	CreatedAt           time.Time         `json:"created_at,omitzero"`
}

func (w wireSubscription) subscription() fastpubsub.Subscription {
	return fastpubsub.Subscription{
		ID: w.ID, TopicID: w.TopicID, Filter: w.Filter, CreatedAt: w.CreatedAt.UTC(),
		SubscriptionSettings: fastpubsub.SubscriptionSettings{
			MaxDeliveryAttempts: w.MaxDeliveryAttempts,
			BackoffMin:          time.Duration(w.BackoffMinSeconds) * time.Second,
			BackoffMax:          time.Duration(w.BackoffMaxSeconds) * time.Second,
			AckDeadline:         time.Duration(w.AckDeadlineSeconds) * time.Second,
		},
	}
}

// CreateSubscription creates a subscription, which gets what is committed after it exists, and returns it with what it
// left out filled in. It returns ErrExists if the id is taken, ErrNotFound if there is no such topic, and an
// InvalidError with all that is wrong.
func (c *Client) CreateSubscription(ctx context.Context, sub fastpubsub.Subscription) (fastpubsub.Subscription, error) {
	var p problems
	w := wireSubscription{
		ID: sub.ID, TopicID: sub.TopicID, Filter: sub.Filter, MaxDeliveryAttempts: sub.MaxDeliveryAttempts,
		BackoffMinSeconds:  p.seconds("backoff_min_seconds", sub.BackoffMin),
		BackoffMaxSeconds:  p.seconds("backoff_max_seconds", sub.BackoffMax),
		AckDeadlineSeconds: p.seconds("ack_deadline_seconds", sub.AckDeadline),
	}
	if err := p.err(); err != nil {
		return fastpubsub.Subscription{}, fmt.Errorf("create subscription: %w", err)
	}
	var created wireSubscription
	err := c.post(ctx, "/subscriptions", w, &created, false)
	return created.subscription(), err
}

// GetSubscription returns ErrNotFound if there is no such subscription.
func (c *Client) GetSubscription(ctx context.Context, id string) (fastpubsub.Subscription, error) {
	var w wireSubscription
	err := c.object(ctx, http.MethodGet, subscriptions, id, "", &w)
	return w.subscription(), err
}

// ListSubscriptions returns subscriptions in the order of their ids, bytewise, as ListTopics does.
func (c *Client) ListSubscriptions(ctx context.Context, options fastpubsub.ListOptions) ([]fastpubsub.Subscription, error) {
	return list(ctx, c, "/subscriptions", options, wireSubscription.subscription)
}

// DeleteSubscription deletes a subscription and all that it has not delivered. It returns ErrNotFound if there is no such
// subscription.
func (c *Client) DeleteSubscription(ctx context.Context, id string) error {
	return c.object(ctx, http.MethodDelete, subscriptions, id, "", nil)
}

// Metrics returns the counts of a subscription. It returns ErrNotFound if there is no such subscription.
func (c *Client) Metrics(ctx context.Context, subscriptionID string) (fastpubsub.Metrics, error) {
	var w struct {
		Available, Delayed, Delivered, Acked, DLQ int64

		OldestUnackedAgeSeconds float64 `json:"oldest_unacked_age_seconds"`
		AvailableEstimated      bool    `json:"available_estimated"`
	}
	err := c.object(ctx, http.MethodGet, subscriptions, subscriptionID, "/metrics", &w)
	return fastpubsub.Metrics{
		Available: w.Available, Delayed: w.Delayed, Delivered: w.Delivered, Acked: w.Acked, DeadLetters: w.DLQ,
		OldestUnackedAge: time.Duration(w.OldestUnackedAgeSeconds * float64(time.Second)), Estimated: w.AvailableEstimated,
	}, err
}
