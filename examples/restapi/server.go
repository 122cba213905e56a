package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
)

// A shop is an application that has a logger, metrics and routes, and publishes with a broker.
type shop struct {
	logger   *slog.Logger
	registry *prometheus.Registry
	orders   prometheus.Counter
	broker   *fastpubsub.Broker
}

func newShop(pool *pgxpool.Pool, schema string, logger *slog.Logger) (*shop, error) {
	s := &shop{logger: logger, registry: prometheus.NewRegistry(),
		orders: prometheus.NewCounter(prometheus.CounterOpts{Name: "shop_orders_total", Help: "Orders taken."})}
	s.registry.MustRegister(s.orders)
	var err error
	s.broker, err = fastpubsub.New(pool, fastpubsub.Config{
		Schema:        schema,
		Logger:        logger,
		OnMaintenance: httpapi.MaintenanceMetrics(s.registry),
		// From your settings, and the same in all processes: after a restart, tokens of another key are refused.
		Tokens: fastpubsub.TokenSettings{Key: fastpubsub.NewSecret()},
	})
	return s, err
}

// serve serves until ctx ends.
func (s *shop) serve(ctx context.Context, listener net.Listener) error {
	api := httpapi.New(s.broker, httpapi.Config{Logger: s.logger, Registerer: s.registry, Authenticate: true})
	mux := http.NewServeMux()
	mux.Handle("/pubsub/", http.StripPrefix("/pubsub", api))
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("POST /orders", s.takeOrder)

	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	server.RegisterOnShutdown(api.EndWaits) // consumers that wait for messages would hold it up
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.broker.Run(ctx) }) // maintenance, and notifications from other processes
	g.Go(func() error {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return server.Shutdown(shutdown)
	})
	return g.Wait()
}

// takeOrder is a route of the shop's.
func (s *shop) takeOrder(w http.ResponseWriter, r *http.Request) {
	var order struct {
		Item string `json:"item"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&order); err != nil {
		http.Error(w, "not an order", http.StatusBadRequest)
		return
	}
	if _, err := s.broker.Publish(r.Context(), "orders", fastpubsub.JSON(order)); err != nil {
		s.logger.ErrorContext(r.Context(), "an order was not published", "error", err)
		http.Error(w, "try again", http.StatusServiceUnavailable)
		return
	}
	s.orders.Inc()
	w.WriteHeader(http.StatusAccepted)
}
