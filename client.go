package fastpubsub

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub/store"
)

// A Client is a program that may use the REST API where that asks who calls. This library itself asks nobody: who has a Broker
// has the database.
type Client struct {
	ID     uuid.UUID // of version 7, if it was created here
	Name   string    // for people; need not be unique
	Scopes Scopes
	Active bool // gets tokens, and they are accepted
	// TokenVersion is raised by each update. Tokens of another version are refused.
	TokenVersion int
	CreatedAt    time.Time // UTC
	UpdatedAt    time.Time // UTC
}

const maxNameLength = 256

// NewClient is what a client is created from.
type NewClient struct {
	Name     string // 1 to 256 characters, without white space around them
	Scopes   Scopes // at least one, see [ParseScopes]
	Inactive bool   // gets no tokens until it is activated
}

// ClientUpdate is what a client becomes.
type ClientUpdate struct {
	Name   string
	Scopes Scopes
	Active *bool // nil leaves it as it is
}

// checkName returns a name as it is stored.
func checkName(p *problems, name string) string {
	name = strings.TrimSpace(name)
	switch n := utf8.RuneCountInString(name); {
	case n == 0:
		p.add("name", "string_too_short", "must have at least 1 character")
	case n > maxNameLength:
		p.add("name", "string_too_long", "must have at most %d characters, not %d", maxNameLength, n)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		p.add("name", "value_error", "must be UTF-8 without NUL")
	}
	return name
}

// CreateClient creates a client and returns its secret, which nobody can find out later: only its hash is stored, by argon2id.
// Computing that takes some 0.1 seconds and 64 MiB; two are computed at once at most, and one on fewer than eight cores. When
// ctx is cancelled, the client may have been created all the same; without its secret it is of no use.
//
// It returns an InvalidError for a name or scopes that cannot be used, and ErrBusy after 5 seconds of waiting for other hashes.
func (b *Broker) CreateClient(ctx context.Context, c NewClient) (Client, Secret, error) {
	var p problems
	name := checkName(&p, c.Name)
	scopes := checkScopes(&p, c.Scopes)
	if err := p.err(); err != nil {
		return Client{}, "", fmt.Errorf("create client: %w", err)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Client{}, "", err
	}
	secret := NewSecret()
	hash, err := b.hasher.hash(ctx, secret)
	if err != nil {
		return Client{}, "", fmt.Errorf("create client: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Client{}, "", fmt.Errorf("create client: %w", err)
	}
	row, err := b.store.CreateClient(ctx, b.pool, store.Client{
		ID: id.String(), Name: name, Scopes: scopes.String(), IsActive: !c.Inactive, TokenVersion: 1,
	}, hash.String())
	if err != nil {
		return Client{}, "", fmt.Errorf("create client: %w", err)
	}
	return clientOf(row), secret, nil
}

// ImportClient stores a client as it was elsewhere, with its id, version and times, and the hash of its secret, a PHC string of
// argon2id: its secret goes on to be good, and so do its tokens if the key does. Times that are zero are now, and so is a
// version that is 0 the first.
//
// A hash has limits, so that checking a secret cannot take all memory: m up to 131072 KiB, t up to 10, p up to 16. It returns
// an InvalidError, with the field "secret_hash" for a hash, and ErrExists if the id is taken.
func (b *Broker) ImportClient(ctx context.Context, c Client, secretHash Secret) error {
	row, hash, err := importable(c, secretHash)
	if err != nil {
		return err
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return err
	}
	if _, err := b.store.CreateClient(ctx, b.pool, row, hash); err != nil {
		return fmt.Errorf("import client %v: %w", c.ID, err)
	}
	return nil
}

// CheckImport returns the InvalidError that ImportClient would, and stores nothing.
func CheckImport(c Client, secretHash Secret) error {
	_, _, err := importable(c, secretHash)
	return err
}

// importable returns what ImportClient stores.
func importable(c Client, secretHash Secret) (row store.Client, stored string, err error) {
	var p problems
	name := checkName(&p, c.Name)
	scopes := checkScopes(&p, c.Scopes)
	if c.TokenVersion == 0 {
		c.TokenVersion = 1
	}
	checkRange(&p, "token_version", c.TokenVersion, 1, maxTokenVersion)
	hash, err := parseSecretHash(string(secretHash))
	if err != nil {
		p.add("secret_hash", "value_error", "%v", err)
	}
	if err := p.err(); err != nil {
		return store.Client{}, "", fmt.Errorf("import client %v: %w", c.ID, err)
	}
	return store.Client{
		ID: c.ID.String(), Name: name, Scopes: scopes.String(), IsActive: c.Active, TokenVersion: c.TokenVersion,
		CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
	}, hash.String(), nil
}

// maxTokenVersion is what the column can hold.
const maxTokenVersion = 1<<31 - 1

// clientOf is a client by its row.
func clientOf(row store.Client) Client {
	id, _ := uuid.Parse(row.ID) // the database writes no other
	return Client{
		ID: id, Name: row.Name, Scopes: strings.Fields(row.Scopes), Active: row.IsActive, TokenVersion: row.TokenVersion,
		CreatedAt: row.CreatedAt.UTC(), UpdatedAt: row.UpdatedAt.UTC(),
	}
}

// GetClient returns ErrNotFound if there is no such client.
func (b *Broker) GetClient(ctx context.Context, id uuid.UUID) (Client, error) {
	if err := b.ready(ctx, b.pool); err != nil {
		return Client{}, err
	}
	row, err := b.store.GetClient(ctx, b.pool, id.String())
	if err != nil {
		return Client{}, fmt.Errorf("get client %v: %w", id, err)
	}
	return clientOf(row), nil
}

// ListClients returns clients in the order of their ids, which is that of their creation. It returns an InvalidError for options
// out of range.
func (b *Broker) ListClients(ctx context.Context, options ListOptions) ([]Client, error) {
	if err := options.check(); err != nil {
		return nil, fmt.Errorf("list clients: %w", err)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return nil, err
	}
	rows, err := b.store.ListClients(ctx, b.pool, options.Offset, options.Limit)
	if err != nil {
		return nil, fmt.Errorf("list clients: %w", err)
	}
	clients := make([]Client, len(rows))
	for i, row := range rows {
		clients[i] = clientOf(row)
	}
	return clients, nil
}

// UpdateClient changes a client and raises its TokenVersion: all tokens that it has are refused from then on, also if nothing
// else changes. When ctx is cancelled, it may have been updated all the same.
//
// It returns ErrNotFound if there is no such client and an InvalidError for a name or scopes that cannot be used.
func (b *Broker) UpdateClient(ctx context.Context, id uuid.UUID, update ClientUpdate) (Client, error) {
	var p problems
	name := checkName(&p, update.Name)
	scopes := checkScopes(&p, update.Scopes)
	if err := p.err(); err != nil {
		return Client{}, fmt.Errorf("update client %v: %w", id, err)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Client{}, err
	}
	row, err := b.store.UpdateClient(ctx, b.pool, id.String(), name, scopes.String(), update.Active)
	if err != nil {
		return Client{}, fmt.Errorf("update client %v: %w", id, err)
	}
	return clientOf(row), nil
}

// DeleteClient deletes a client; its tokens are refused from then on. It returns ErrNotFound if there is no such client.
func (b *Broker) DeleteClient(ctx context.Context, id uuid.UUID) error {
	if err := b.ready(ctx, b.pool); err != nil {
		return err
	}
	if err := b.store.DeleteClient(ctx, b.pool, id.String()); err != nil {
		return fmt.Errorf("delete client %v: %w", id, err)
	}
	return nil
}
