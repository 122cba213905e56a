package storetest

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

// urlEnv names a database to test in, whose user may create schemas.
const urlEnv = "FASTPUBSUB_TEST_DATABASE_URL"

// serverSettings are those of the throw-away server.
var serverSettings = map[string]string{
	"fsync":                     "off",
	"full_page_writes":          "off",
	"synchronous_commit":        "on",
	"max_connections":           "400",
	"max_prepared_transactions": "20",
	"shared_buffers":            "128MB",
}

// The image and how long a container may live if nobody stops it.
const (
	dockerImage, dockerTag = "postgres", "17-alpine"
	dockerLifetime         = time.Hour
)

var (
	mainRuns atomic.Bool
	stop     = func() error { return nil } // of the shared server; written by sharedURL, read by Main after the tests
)

// Main runs the tests of a package and stops the server that they shared. It is all that a TestMain needs to do; the
// exit code is that of the tests, or 1 if they passed and the server could not be stopped.
func Main(m *testing.M) {
	mainRuns.Store(true)
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintf(os.Stderr, "storetest: stop the server: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// sharedURL returns the address of the database that all tests of this process share.
var sharedURL = sync.OnceValues(func() (string, error) {
	if !mainRuns.Load() {
		return "", errors.New("nothing would stop the server: " +
			"add func TestMain(m *testing.M) { storetest.Main(m) } to the package")
	}
	if url := os.Getenv(urlEnv); url != "" {
		return url, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
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
			"or install the PostgreSQL server, or start Docker\n\t%w\n\tdocker: %w", urlEnv, err, dockerErr)
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
	return address.String(), waitReady(ctx, address.String())
}

// waitReady waits until the server in the container takes connections.
func waitReady(ctx context.Context, url string) error {
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
