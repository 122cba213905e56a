package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/internal/pgserver/fetch"
)

// devCommand has few of the server's settings, and listens for this machine only.
type devCommand struct {
	Dir          string `type:"path" placeholder:"FOLDER" help:"The folder for the data. Default: .fastpubsub in the working directory, or /var/lib/fastpubsub-dev for root where nobody else may enter that."`
	DatabasePort string `default:"0" placeholder:"PORT" help:"The port of PostgreSQL. Default: a free one, another at each start."`
	APIHost      string `name:"api-host" env:"FASTPUBSUB_API_HOST" default:"127.0.0.1" help:"The address to listen on."`
	APIPort      string `name:"api-port" env:"FASTPUBSUB_API_PORT" default:"8000" help:"The port to listen on; 0 for any free one."`
	logFlags
}

// Run implements the subcommand. A signal is how it ends, also while it starts.
func (c *devCommand) Run(p *process) error {
	var bad badSettings
	apiPort := bad.integer("FASTPUBSUB_API_PORT", c.APIPort, 0, math.MaxUint16)
	databasePort := bad.integer("--database-port", c.DatabasePort, 0, math.MaxUint16)
	logger := c.logger(&bad, p.stderr)
	if err := bad.err(); err != nil {
		return err
	}
	dir := c.Dir
	if dir == "" {
		var err error
		if dir, err = devDir(); err != nil {
			return err
		}
	}
	settings := apiSettings{
		address: net.JoinHostPort(c.APIHost, strconv.Itoa(apiPort)),
		schema:  fastpubsub.DefaultSchema,

		maintenance: true,
	}

	unlessInterrupted := func(err error) error {
		if p.ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	srv, err := startPostgres(p.ctx, pgserver.Options{Dir: dir, Port: databasePort, Durable: true}, logger)
	if err != nil {
		return unlessInterrupted(err)
	}
	err = serveFrom(p.ctx, srv, settings, logger, func(address string) { greet(p.stdout, dir, srv.URL(), address) })
	return errors.Join(unlessInterrupted(err), srv.Stop())
}

// serveFrom migrates and serves until ctx ends, or until PostgreSQL ends by itself, which is an error.
func serveFrom(ctx context.Context, srv *pgserver.Server, settings apiSettings, logger *slog.Logger, ready func(address string)) error {
	config, err := pgxpool.ParseConfig(srv.URL())
	if err != nil {
		return err
	}
	config.MaxConns = 15 // as the server's default
	if err := migrate(ctx, config.ConnConfig, settings.schema, logger); err != nil {
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()

	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		select {
		case <-srv.Done():
			cancel()
		case <-ctx.Done():
		}
	})
	err = serve(ctx, pool, settings, logger, ready)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w: choose another port with --api-port, 0 for any free one", err)
	}
	return errors.Join(err, srv.Err())
}

// Where root keeps what the account that runs the server has to reach.
const (
	rootDataDir  = "/var/lib/fastpubsub-dev"
	rootCacheDir = "/var/cache/fastpubsub"
)

// devDir returns the folder for the data when none is named. PostgreSQL refuses to run as root, and the account that it
// runs as instead may not enter what is root's alone, such as root's home.
func devDir() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if os.Geteuid() == 0 && !publicPath(wd) {
		return rootDataDir, nil
	}
	return filepath.Join(wd, ".fastpubsub"), nil
}

// publicPath says whether everybody may enter path, an absolute one.
func publicPath(path string) bool {
	for {
		info, err := os.Stat(path)
		if err != nil || info.Mode()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(path)
		if parent == path {
			return true
		}
		path = parent
	}
}

// startPostgres starts PostgreSQL, with downloaded binaries if none are installed.
func startPostgres(ctx context.Context, options pgserver.Options, logger *slog.Logger) (*pgserver.Server, error) {
	srv, err := pgserver.Start(ctx, options)
	if !errors.Is(err, pgserver.ErrNoBinaries) {
		return srv, err
	}
	cache := rootCacheDir
	if os.Geteuid() != 0 {
		if cache, err = os.UserCacheDir(); err != nil {
			return nil, err
		}
		cache = filepath.Join(cache, "fastpubsub")
	}
	logger.Info("no PostgreSQL server binaries on this machine, using downloaded ones", "folder", cache)
	if options.Bin, err = fetch.Fetch(ctx, cache); err != nil {
		return nil, err
	}
	return pgserver.Start(ctx, options)
}

const greeting = `
fastpubsub is running. Ctrl-C ends it; the data stay in %[1]s.

  API       %[2]s
  Database  %[3]s

Paste this into another terminal:

  curl -H 'Content-Type: application/json' -d '{"id": "orders"}' %[2]s/topics
  curl -H 'Content-Type: application/json' -d '{"id": "emails", "topic_id": "orders"}' %[2]s/subscriptions
  curl -H 'Content-Type: application/json' -d '[{"order": 1, "to": "ann@example.com"}]' %[2]s/topics/orders/messages
  curl '%[2]s/subscriptions/emails/messages?consumer_id=me'

Then ack the message, with the id from the last answer in place of ID:

  curl -H 'Content-Type: application/json' -d '["ID"]' %[2]s/subscriptions/emails/acks

`

// greet says what there is to use. address is what the API listens on.
func greet(w io.Writer, dir, databaseURL, address string) {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip.IsUnspecified() {
		address = net.JoinHostPort("127.0.0.1", port)
	}
	fmt.Fprintf(w, greeting, dir, "http://"+address, databaseURL)
}
