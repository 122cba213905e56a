package httpapi

import (
	"math"
	"net/http"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// wireTopic is a topic in JSON.
type wireTopic struct {
	ID        string    `json:"id"`
	CreatedAt time.Time `json:"created_at"`
}

func toWireTopic(t fastpubsub.Topic) wireTopic { return wireTopic(t) }

func (a *API) createTopic(w http.ResponseWriter, r *http.Request) error {
	body, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	f, err := readObject(body)
	if err != nil {
		return err
	}
	id := f.id("id")
	if err := f.err(); err != nil {
		return err
	}
	topic, err := a.broker.CreateTopic(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, toWireTopic(topic))
	return nil
}

func (a *API) getTopic(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	topic, err := a.broker.GetTopic(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, toWireTopic(topic))
	return nil
}

func (a *API) listTopics(w http.ResponseWriter, r *http.Request) error {
	options, err := listOptions(r)
	if err != nil {
		return err
	}
	topics, err := a.broker.ListTopics(r.Context(), options)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, listOf(topics, toWireTopic))
	return nil
}

func listOptions(r *http.Request) (fastpubsub.ListOptions, error) {
	f := readQuery(r)
	options := fastpubsub.ListOptions{
		Offset: f.integer("offset", 0, 0, math.MaxInt),
		Limit:  f.integer("limit", defaultListLimit, 1, maxListLimit),
	}
	return options, f.err()
}

func (a *API) deleteTopic(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	if err := a.broker.DeleteTopic(r.Context(), id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
