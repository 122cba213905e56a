package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
)

// wireClient is a client in JSON.
type wireClient struct {
	ID           uuid.UUID `json:"id"`
	Name         string    `json:"name"`
	Scopes       string    `json:"scopes"`
	IsActive     bool      `json:"is_active"`
	TokenVersion int       `json:"token_version"`
	CreatedAt    time.Time `json:"created_at"`
	UpdatedAt    time.Time `json:"updated_at"`
}

func (w wireClient) client() (fastpubsub.Client, error) {
	scopes, err := fastpubsub.ParseScopes(w.Scopes)
	if err != nil {
		return fastpubsub.Client{}, fmt.Errorf("client %v: %w", w.ID, err)
	}
	return fastpubsub.Client{
		ID: w.ID, Name: w.Name, Scopes: scopes, Active: w.IsActive, TokenVersion: w.TokenVersion,
		CreatedAt: w.CreatedAt.UTC(), UpdatedAt: w.UpdatedAt.UTC(),
	}, nil
}

// clientUpdate is what a client is to be, in JSON.
type clientUpdate struct {
	Name     string `json:"name"`
	Scopes   string `json:"scopes"`
	IsActive *bool  `json:"is_active,omitempty"`
}

// CreateClient creates a client and returns its id and its secret, which nobody can find out later. It returns an InvalidError
// for a name or scopes that cannot be used, and ErrScope for scopes that the caller does not have itself.
func (c *Client) CreateClient(ctx context.Context, n fastpubsub.NewClient) (uuid.UUID, fastpubsub.Secret, error) {
	active := !n.Inactive
	var w struct {
		ID     uuid.UUID
		Secret string
	}
	err := c.post(ctx, "/clients", clientUpdate{n.Name, n.Scopes.String(), &active}, &w, false)
	return w.ID, fastpubsub.Secret(w.Secret), err
}

// GetClient returns ErrNotFound if there is no such client.
func (c *Client) GetClient(ctx context.Context, id uuid.UUID) (fastpubsub.Client, error) {
	var w wireClient
	if err := c.object(ctx, http.MethodGet, "clients", id.String(), "", &w); err != nil {
		return fastpubsub.Client{}, err
	}
	return w.client()
}

// ListClients returns clients in the order of their ids, as ListTopics does.
func (c *Client) ListClients(ctx context.Context, options fastpubsub.ListOptions) ([]fastpubsub.Client, error) {
	wires, err := list(ctx, c, "/clients", options, func(w wireClient) wireClient { return w })
	if err != nil {
		return nil, err
	}
	all := make([]fastpubsub.Client, len(wires))
	for i, w := range wires {
		if all[i], err = w.client(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// UpdateClient changes a client, and with that revokes its tokens. It returns ErrNotFound if there is no such client, and else
// what CreateClient does.
func (c *Client) UpdateClient(ctx context.Context, id uuid.UUID, update fastpubsub.ClientUpdate) (fastpubsub.Client, error) {
	path := "/clients/" + id.String()
	body, err := json.Marshal(clientUpdate{update.Name, update.Scopes.String(), update.Active})
	if err != nil {
		return fastpubsub.Client{}, fmt.Errorf("PUT %s: %w", path, err)
	}
	var w wireClient
	if err := c.call(ctx, request{method: http.MethodPut, path: path, body: body}, &w); err != nil {
		return fastpubsub.Client{}, err
	}
	return w.client()
}

// DeleteClient deletes a client, and with that revokes its tokens. It returns ErrNotFound if there is no such client.
func (c *Client) DeleteClient(ctx context.Context, id uuid.UUID) error {
	return c.object(ctx, http.MethodDelete, "clients", id.String(), "", nil)
}
