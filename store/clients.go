package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Client is a row of clients, without the hash of its secret. ID is a UUID as text: pgx has no type for it in all modes.
type Client struct {
	ID           string
	Name         string
	Scopes       string
	IsActive     bool
	TokenVersion int
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

const clientColumns = `id::text, name, scopes, is_active, token_version, created_at, updated_at`

// Times that are not known are now, which is the default of the columns.
const createClient = `
INSERT INTO {schema}.clients (id, name, scopes, is_active, token_version, secret_hash, created_at, updated_at)
VALUES ($1::text::uuid, $2, $3, $4, $5, $6, coalesce($7::timestamptz, clock_timestamp()), coalesce($8::timestamptz, clock_timestamp()))
RETURNING ` + clientColumns

// CreateClient stores a client, and returns it as it was stored. Its times are now where they are zero. It returns ErrExists if
// the id is taken.
func (s *Store) CreateClient(ctx context.Context, db DBTX, c Client, secretHash string) (Client, error) {
	return oneClient(db.Query(ctx, s.createClient, c.ID, c.Name, c.Scopes, c.IsActive, c.TokenVersion, secretHash, known(c.CreatedAt), known(c.UpdatedAt)))
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

const getClient = `SELECT ` + clientColumns + ` FROM {schema}.clients WHERE id = $1::text::uuid`

// GetClient returns ErrNotFound if there is no such client.
func (s *Store) GetClient(ctx context.Context, db DBTX, id string) (Client, error) {
	return oneClient(db.Query(ctx, s.getClient, id))
}

func oneClient(rows pgx.Rows, _ error) (Client, error) { // CollectExactlyOneRow reports Query's error
	c, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Client])
	return c, translate(err)
}

const listClients = `SELECT ` + clientColumns + ` FROM {schema}.clients ORDER BY id OFFSET $1 LIMIT $2`

// ListClients pages through the clients in the order of their ids: that of their creation, if they were created here.
func (s *Store) ListClients(ctx context.Context, db DBTX, offset, limit int) ([]Client, error) {
	rows, _ := db.Query(ctx, s.listClients, offset, limit) // CollectRows reports Query's error
	clients, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Client])
	return clients, translate(err)
}

// The version is raised here and not in Go: two updates at once raise it twice.
const updateClient = `
UPDATE {schema}.clients
SET name = $2, scopes = $3, is_active = coalesce($4, is_active), token_version = token_version + 1, updated_at = clock_timestamp()
WHERE id = $1::text::uuid
RETURNING ` + clientColumns

// UpdateClient changes a client, and whether it is active unless that is nil, and returns it. Its tokens are of an older version
// then. It returns ErrNotFound if there is no such client.
func (s *Store) UpdateClient(ctx context.Context, db DBTX, id, name, scopes string, isActive *bool) (Client, error) {
	return oneClient(db.Query(ctx, s.updateClient, id, name, scopes, isActive))
}

const deleteClient = `DELETE FROM {schema}.clients WHERE id = $1::text::uuid`

// DeleteClient returns ErrNotFound if there is no such client.
func (s *Store) DeleteClient(ctx context.Context, db DBTX, id string) error {
	return deleteOne(ctx, db, s.deleteClient, id)
}

// Credentials are what a client's token is issued by.
type Credentials struct {
	SecretHash   string
	Scopes       string
	IsActive     bool
	TokenVersion int
}

const getCredentials = `SELECT secret_hash, scopes, is_active, token_version FROM {schema}.clients WHERE id = $1::text::uuid`

// GetCredentials returns ErrNotFound if there is no such client.
func (s *Store) GetCredentials(ctx context.Context, db DBTX, id string) (Credentials, error) {
	rows, _ := db.Query(ctx, s.getCredentials, id) // CollectExactlyOneRow reports Query's error
	c, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Credentials])
	return c, translate(err)
}

const getTokenVersion = `SELECT token_version FROM {schema}.clients WHERE id = $1::text::uuid AND is_active`

// GetTokenVersion returns the version that a client's tokens must have. It runs for each request with a token. It returns
// ErrNotFound if there is no such client, or it is not active.
func (s *Store) GetTokenVersion(ctx context.Context, db DBTX, id string) (int, error) {
	var version int
	err := db.QueryRow(ctx, s.getTokenVersion, id).Scan(&version)
	return version, translate(err)
}
