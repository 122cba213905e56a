package httpapi

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// wireSubscription is a subscription in JSON.
type wireSubscription struct {
	ID                  string            `json:"id"`
	TopicID             string            `json:"topic_id"`
	Filter              fastpubsub.Filter `json:"filter"`
	MaxDeliveryAttempts int               `json:"max_delivery_attempts"`
	BackoffMinSeconds   int64             `json:"backoff_min_seconds"`
	BackoffMaxSeconds   int64             `json:"backoff_max_seconds"`
	AckDeadlineSeconds  int64             `json:"ack_deadline_seconds"`
	CreatedAt           time.Time         `json:"created_at"`
}

func toWireSubscription(s fastpubsub.Subscription) wireSubscription {
	return wireSubscription{
		ID:                  s.ID,
		TopicID:             s.TopicID,
		Filter:              s.Filter,
		MaxDeliveryAttempts: s.MaxDeliveryAttempts,
		BackoffMinSeconds:   int64(s.BackoffMin / time.Second),
		BackoffMaxSeconds:   int64(s.BackoffMax / time.Second),
		AckDeadlineSeconds:  int64(s.AckDeadline / time.Second),
		CreatedAt:           s.CreatedAt,
	}
}

func (a *API) createSubscription(w http.ResponseWriter, r *http.Request) error {
	body, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	f, err := readObject(body)
	if err != nil {
		return err
	}
	sub := fastpubsub.Subscription{ // fields are read in this order
		ID:      f.id("id"),
		TopicID: f.id("topic_id"),
		Filter:  f.filter("filter"),
		SubscriptionSettings: fastpubsub.SubscriptionSettings{
			MaxDeliveryAttempts: f.integer("max_delivery_attempts", math.MaxInt32),
			BackoffMin:          f.seconds("backoff_min_seconds", math.MaxInt32),
			BackoffMax:          f.seconds("backoff_max_seconds", math.MaxInt32),
			AckDeadline:         f.seconds("ack_deadline_seconds", maxAckDeadlineSeconds),
		},
	}
	if err := f.err(); err != nil {
		return err
	}
	sub, err = a.broker.CreateSubscription(r.Context(), sub)
	if errors.Is(err, fastpubsub.ErrNotFound) {
		return &statusError{http.StatusNotFound, "Topic not found"}
	}
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, toWireSubscription(sub))
	return nil
}

func (f *bodyFields) seconds(name string, highest int) time.Duration {
	return time.Duration(f.integer(name, highest)) * time.Second
}

// filter reads a filter; none if it is missing.
func (f *bodyFields) filter(name string) fastpubsub.Filter {
	value, ok := f.values[name]
	if !ok {
		return fastpubsub.Filter{}
	}
	filter, err := fastpubsub.ParseFilter(value)
	if invalid := (*fastpubsub.InvalidError)(nil); errors.As(err, &invalid) {
		for _, p := range invalid.Problems {
			f.add(filterLoc(name, p), p.Type, "%s", p.Msg)
		}
	}
	return filter
}

// filterLoc is where a filter's problem is. Keys may have dots; what tells an index from the end of a key is that only
// a single value is of the wrong kind.
func filterLoc(name string, p fastpubsub.Problem) []any {
	loc := []any{"body", name}
	_, key, ok := strings.Cut(p.Field, ".")
	if !ok {
		return loc
	}
	if dot := strings.LastIndexByte(key, '.'); dot >= 0 && p.Type == "value_error" {
		if i, err := strconv.Atoi(key[dot+1:]); err == nil {
			return append(loc, key[:dot], i)
		}
	}
	return append(loc, key)
}

func (a *API) getSubscription(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	sub, err := a.broker.GetSubscription(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, toWireSubscription(sub))
	return nil
}

func (a *API) listSubscriptions(w http.ResponseWriter, r *http.Request) error {
	options, err := listOptions(r)
	if err != nil {
		return err
	}
	subs, err := a.broker.ListSubscriptions(r.Context(), options)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, listOf(subs, toWireSubscription))
	return nil
}

func (a *API) deleteSubscription(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	if err := a.broker.DeleteSubscription(r.Context(), id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// wireMetrics is the counts of a subscription in JSON.
type wireMetrics struct {
	SubscriptionID          string  `json:"subscription_id"`
	Available               int64   `json:"available"`
	Delivered               int64   `json:"delivered"`
	Acked                   int64   `json:"acked"`
	DLQ                     int64   `json:"dlq"`
	Delayed                 int64   `json:"delayed"`
	OldestUnackedAgeSeconds float64 `json:"oldest_unacked_age_seconds"`
	AvailableEstimated      bool    `json:"available_estimated,omitempty"`
}

func (a *API) metrics(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	m, err := a.broker.Metrics(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, wireMetrics{
		SubscriptionID:          id,
		Available:               m.Available,
		Delivered:               m.Delivered,
		Acked:                   m.Acked,
		DLQ:                     m.DeadLetters,
		Delayed:                 m.Delayed,
		OldestUnackedAgeSeconds: m.OldestUnackedAge.Seconds(),
		AvailableEstimated:      m.Estimated,
	})
	return nil
}
