package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
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
	connectionFlags  `embed:"" group:"Database"`
	apiFlags         `embed:"" group:"API"`
	authFlags        `embed:"" group:"Authentication"`
	newFlags         `embed:"" group:"What a new subscription does not say itself"`
	listenFlags      `embed:"" group:"Database"`
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
	settings.listen = c.listen(&bad)
	settings.maintenance = c.enabled(&bad)
	settings.slotAge = c.olderThan(&bad)
	workers := c.workers(&bad)
	logger := c.logger(&bad, p.stderr)
	c.apply(&bad, config, logger)
	if err := bad.err(); err != nil {
		return err
	}
	if workers > 0 {
		runtime.GOMAXPROCS(workers)
	}
	tuneMemory()
	// It connects when the first request needs it, so the server starts without the database.
	pool, err := pgxpool.NewWithConfig(p.ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	return serve(p.ctx, pool, settings, logger, nil)
}

const (
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
		Tokens:               settings.tokens,
		Maintenance:          fastpubsub.MaintenanceSettings{Off: !settings.maintenance, SlotAge: settings.slotAge},
		Notifications:        fastpubsub.NotificationSettings{Listen: settings.listen},
		Logger:               logger,
	}
	if settings.maintenance {
		brokerConfig.OnMaintenance = httpapi.MaintenanceMetrics(registry)
	}
	broker, err := fastpubsub.New(pool, brokerConfig)
	if err != nil {
		return err
	}
	checker, checkPool, err := newChecker(ctx, pool, settings.schema)
	if err != nil {
		return err
	}
	defer checkPool.Close()
	apiConfig := settings.api
	apiConfig.Logger = logger
	apiConfig.Check = checker.Check
	apiConfig.Registerer = registry
	api := httpapi.New(broker, apiConfig)

	var handler http.Handler = api
	if settings.debug {
		handler = withProfiles(api)
	}

	requests, cancelRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelRequests()
	server := newServer(requests, handler, logger, serverTimeouts)
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
	wg.Go(func() { awaitReady(ctx, broker, logger) })
	wg.Go(func() { broker.Run(ctx) })
	address := listener.Addr().String()
	logger.Info("listening", "address", address, "schema", settings.schema, "max_connections", pool.Config().MaxConns,
		"cores", runtime.GOMAXPROCS(0), "authentication", settings.api.Authenticate)
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

// awaitReady says at the start what readiness would say, and then when that is over. What was copied from another database is
// repaired also where maintenance is left to others.
func awaitReady(ctx context.Context, broker *fastpubsub.Broker, logger *slog.Logger) {
	const longest = 10 * time.Second
	said := ""
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, longest) {
		check, cancel := context.WithTimeout(ctx, startCheckTimeout)
		err := broker.Check(check)
		cancel()
		if errors.Is(err, fastpubsub.ErrRestored) {
			var repaired fastpubsub.Repaired
			if repaired, err = broker.Repair(ctx); repaired.Restored {
				logger.Warn("messages had been copied from another database, they can be delivered now", "messages", repaired.Messages)
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if said != "" {
				logger.Info("ready")
			}
			return
		case err.Error() != said:
			said = err.Error()
			logger.Warn("not ready, requests will be refused until it is", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)): // not all servers at once
		}
	}
}
