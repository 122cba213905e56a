package testdb

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// CloseTimeout is for what comes after a test.
const CloseTimeout = 30 * time.Second

// SchemaName makes a unique name for a schema, of at most 63 bytes, in which that of the test can be recognised.
func SchemaName(prefix, test string) string {
	name := []byte(prefix + strings.ToLower(test))
	for i, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			name[i] = '_'
		}
	}
	suffix := make([]byte, 5)
	_, _ = rand.Read(suffix) // never fails
	return string(name[:min(len(name), 52)]) + "_" + hex.EncodeToString(suffix)
}

// Fill returns q with the quoted name of the schema for each {schema}.
func Fill(q, schema string) string {
	return strings.ReplaceAll(q, "{schema}", pgx.Identifier{schema}.Sanitize())
}

// ClosePool closes a pool. It returns an error if connections are still lent out when ctx ends; the pool is closed then when they
// are given back.
func ClosePool(ctx context.Context, pool *pgxpool.Pool) error {
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d connections of the pool were not given back", pool.Stat().AcquiredConns())
	}
}

// Drop drops schemas, if they are there. It uses a connection of its own: a pool's may be lent out, or have been made to fail.
func Drop(config *pgx.ConnConfig, schemas ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), CloseTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return fmt.Errorf("drop schema %q: %w", schemas, err)
	}
	defer conn.Close(ctx)
	quoted := make([]string, len(schemas))
	for i, schema := range schemas {
		quoted[i] = pgx.Identifier{schema}.Sanitize()
	}
	if _, err := conn.Exec(ctx, "DROP SCHEMA IF EXISTS "+strings.Join(quoted, ", ")+" CASCADE"); err != nil {
		return fmt.Errorf("drop schema %q: %w", schemas, err)
	}
	return nil
}
