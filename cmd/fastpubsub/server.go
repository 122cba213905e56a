package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

type serverCommand struct {
	databaseFlags    `embed:"" group:"Database"`
	poolFlags        `embed:"" group:"Database"`
	apiFlags         `embed:"" group:"API"`
	authFlags        `embed:"" group:"Authentication"`
	newFlags         `embed:"" group:"What a new subscription does not say itself"`
	maintenanceFlags `embed:"" group:"Maintenance"`
	retentionFlags   `embed:"" group:"Maintenance"`
	logFlags         `embed:"" group:"Log"`
}

// Run implements the subcommand.
func (c *serverCommand) Run(p *process) error {
	var bad badSettings
	config := c.pool(&bad, c.poolFlags)
	settings := c.settings(&bad)
	settings.schema = c.schema(&bad)
	settings.subscriptionDefaults = c.subscriptionDefaults(&bad)
	settings.tokens, settings.api.Authenticate = c.tokens(&bad)
	settings.maintenance = c.enabled(&bad)
	settings.slotAge = c.olderThan(&bad)
	logger := c.logger(&bad, p.stderr)
	if err := bad.err(); err != nil {
		return err
	}
	// It connects when the first request needs it, so the server starts without the database.
	pool, err := pgxpool.NewWithConfig(p.ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	return serve(p.ctx, pool, settings, logger, nil)
}

// The timeouts of the server, about requests of 16 MiB and answers that may be waited for for 30 seconds.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = time.Minute // also ends a long poll, so it must be longer than one
	writeTimeout      = 2 * time.Minute
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10

	// shutdownTimeout is for the requests that are running, less than the 10 seconds that containers get.
	shutdownTimeout = 8 * time.Second

	startCheckTimeout = 5 * time.Second
)

// serve serves the API until ctx ends, then lets running requests finish for up to 8 seconds; consumers that wait get
// their empty answer at once. It returns nil after that, and an error if requests had to be cut off or the server could
// not go on. It calls ready, unless that is nil, with the address that it listens on.
func serve(ctx context.Context, pool *pgxpool.Pool, settings apiSettings, logger *slog.Logger, ready func(address string)) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	brokerConfig := fastpubsub.Config{
		Schema:               settings.schema,
		SubscriptionDefaults: settings.subscriptionDefaults,
		Maintenance:          fastpubsub.MaintenanceSettings{SlotAge: settings.slotAge},
		Tokens:               settings.tokens,
		Logger:               logger,
	}
	if settings.maintenance {
		brokerConfig.OnMaintenance = httpapi.MaintenanceMetrics(registry)
	}
	broker, err := fastpubsub.New(pool, brokerConfig)
	if err != nil {
		return err
	}
	apiConfig := settings.api
	apiConfig.Logger = logger
	apiConfig.Registerer = registry
	api := httpapi.New(broker, apiConfig)

	requests, cancelRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelRequests()
	server := &http.Server{
		Handler:           api,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
	server.RegisterOnShutdown(api.EndWaits)

	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", settings.address)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop() // before it waits
	served := make(chan error, 1)
	wg.Go(func() { served <- server.Serve(listener) })
	wg.Go(func() { warnUnlessReady(ctx, broker, logger) })
	if settings.maintenance {
		wg.Go(func() { broker.Run(ctx) })
	}
	address := listener.Addr().String()
	logger.Info("listening", "address", address, "schema", settings.schema, "max_connections", pool.Config().MaxConns, "authentication", settings.api.Authenticate)
	if ready != nil {
		ready(address)
	}

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	logger.Info("stopping")
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(shutdown); err != nil {
		return errors.Join(fmt.Errorf("requests that ran for more than %v were cut off: %w", shutdownTimeout, err), server.Close())
	}
	logger.Info("stopped")
	return nil
}

// warnUnlessReady says at the start what readiness would say.
func warnUnlessReady(ctx context.Context, broker *fastpubsub.Broker, logger *slog.Logger) {
	check, cancel := context.WithTimeout(ctx, startCheckTimeout)
	defer cancel()
	if err := broker.Check(check); err != nil && ctx.Err() == nil {
		logger.Warn("not ready, requests will be refused until it is", "error", err)
	}
}
