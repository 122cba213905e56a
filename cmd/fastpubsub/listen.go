package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
)

// timeouts are those of connections: about requests of 16 MiB and answers that may be waited for for 30 seconds.
type timeouts struct {
	header time.Duration // until all headers of a request are there
	read   time.Duration // until its body is; also ends a long poll, so it must be longer than one
	write  time.Duration // until its answer was sent, all else included
	idle   time.Duration // between two requests
}

var serverTimeouts = timeouts{header: 10 * time.Second, read: time.Minute, write: 2 * time.Minute, idle: 2 * time.Minute}

const maxHeaderBytes = 64 << 10

// newServer returns the HTTP server. Its requests end with ctx.
func newServer(ctx context.Context, handler http.Handler, logger *slog.Logger, t timeouts) *http.Server {
	return &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: t.header,
		ReadTimeout:       t.read,
		WriteTimeout:      t.write,
		IdleTimeout:       t.idle,
		MaxHeaderBytes:    maxHeaderBytes,
	}
}

const (
	// gcPercent makes the garbage collector run less often than by default: the server keeps a few MiB and throws a lot away.
	// It is a quarter of the time that a publish of many messages takes.
	gcPercent = 400
	// gcLimit is from where on it runs as often as it needs to, so that large bodies do not take five times their memory.
	gcLimit = 512 << 20
)

// tuneMemory sets these, unless the environment has Go's own variables.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(gcLimit)
	}
}

// checkConnections is for checks of readiness: one at a time, and one more while a connection that hung is given up.
const checkConnections = 2

// newChecker returns a broker for checks of readiness alone, and its pool. Its connections are not those that requests may
// use up, and are opened when it is first asked.
func newChecker(ctx context.Context, pool *pgxpool.Pool, schema string) (*fastpubsub.Broker, *pgxpool.Pool, error) {
	config := pool.Config()
	config.MaxConns, config.MinConns, config.MinIdleConns = checkConnections, 0, 0
	own, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, nil, err
	}
	broker, err := fastpubsub.New(own, fastpubsub.Config{Schema: schema})
	if err != nil {
		own.Close()
		return nil, nil, err
	}
	return broker, own, nil
}
