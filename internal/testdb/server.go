// Package testdb has what storetest and fastpubsubtest share: a PostgreSQL for the tests of a process, schemas of their own for
// tests, and the clock of a schema.
package testdb

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/ory/dockertest/v3"
	"github.com/ory/dockertest/v3/docker"

	"github.com/fastpubsub/fastpubsub/internal/pgserver"
)

// URLEnv names a database to test in, whose user may create schemas.
const URLEnv = "FASTPUBSUB_TEST_DATABASE_URL"

// serverSettings are those of the throw-away server.
var serverSettings = map[string]string{
	"fsync":                     "off",
	"full_page_writes":          "off",
	"synchronous_commit":        "on",
	"max_connections":           "400",
	"max_prepared_transactions": "20",
	"shared_buffers":            "128MB",
}

// SetupTimeout is for what comes before a test. Starting a server may include pulling an image.
const SetupTimeout = 2 * time.Minute

// The image and how long a container may live if nobody stops it.
const (
	dockerImage, dockerTag = "postgres", "17-alpine"
	dockerLifetime         = time.Hour
)

var (
	running atomic.Bool                   // in Run
	stop    = func() error { return nil } // the shared server; written by server, read by Run after the tests
)

// Run runs the tests of a package, stops the server that they shared, and returns the exit code: that of the tests, or 1 if they
// passed and the server could not be stopped.
func Run(m *testing.M) int {
	running.Store(true)
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintf(os.Stderr, "stop the PostgreSQL of the tests: %v\n", err)
		code = max(code, 1)
	}
	return code
}

// URL returns the address of the database that all tests of this process share: the one that the environment names, else one
// on a throw-away server. A server is started only if Run runs the tests, since nothing would stop it; main is the TestMain
// that an error asks for.
func URL(main string) (string, error) {
	if url := os.Getenv(URLEnv); url != "" {
		return url, nil
	}
	if !running.Load() {
		return "", fmt.Errorf("%s is not set, and nothing would stop a PostgreSQL of this package's own: add %s to the package", URLEnv, main)
	}
	return server()
}

// server starts the shared server.
var server = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), SetupTimeout)
	defer cancel()
	srv, err := pgserver.Start(ctx, pgserver.Options{Settings: serverSettings})
	if err == nil {
		stop = srv.Stop
		return srv.URL(), nil
	}
	if !errors.Is(err, pgserver.ErrNoBinaries) && !errors.Is(err, errors.ErrUnsupported) {
		return "", err
	}
	url, dockerErr := startContainer(ctx)
	if dockerErr != nil {
		return "", fmt.Errorf("no PostgreSQL to test with: set %s to the address of a database, "+
			"or install the PostgreSQL server, or start Docker\n\t%w\n\tdocker: %w", URLEnv, err, dockerErr)
	}
	return url, nil
})

// startContainer runs the server in Docker.
func startContainer(ctx context.Context) (_ string, err error) {
	pool, err := dockertest.NewPool("")
	if err != nil {
		return "", err
	}
	ping, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := pool.Client.PingWithContext(ping); err != nil {
		return "", fmt.Errorf("no engine answers: %w", err)
	}
	cmd := []string{"postgres"}
	for name, value := range serverSettings {
		cmd = append(cmd, "-c", name+"="+value)
	}
	resource, err := pool.RunWithOptions(&dockertest.RunOptions{
		Repository: dockerImage,
		Tag:        dockerTag,
		Env: []string{
			"POSTGRES_USER=fastpubsub",
			"POSTGRES_PASSWORD=fastpubsub",
			"POSTGRES_INITDB_ARGS=--encoding=UTF8 --locale=C",
		},
		Cmd: cmd,
	}, func(config *docker.HostConfig) { config.AutoRemove = true })
	if err != nil {
		return "", err
	}
	stop = func() error { return pool.Purge(resource) }
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
			stop = func() error { return nil }
		}
	}()
	if err := resource.Expire(uint(dockerLifetime.Seconds())); err != nil {
		return "", err
	}
	address := url.URL{
		Scheme: "postgres", User: url.UserPassword("fastpubsub", "fastpubsub"),
		Host: resource.GetHostPort("5432/tcp"), Path: "/fastpubsub", RawQuery: "sslmode=disable",
	}
	return address.String(), WaitReady(ctx, address.String())
}

// WaitReady waits, 30 seconds at most, until a server takes connections.
func WaitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-tick.C:
		}
	}
}
