package httpapi_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/httpapi"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// exampleBroker is a broker on a schema of its own, with a topic "orders" and a subscription "emails".
func exampleBroker(ctx context.Context, config fastpubsub.Config) (*fastpubsub.Broker, *storetest.DB) {
	db, err := storetest.Open(ctx, "example")
	if err != nil {
		panic(err)
	}
	config.Schema = db.Schema
	config.Logger = slog.New(slog.DiscardHandler)
	broker, err := fastpubsub.New(db.Pool, config)
	if err != nil {
		panic(err)
	}
	if _, err := broker.CreateTopic(ctx, "orders"); err != nil {
		panic(err)
	}
	if _, err := broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "emails", TopicID: "orders"}); err != nil {
		panic(err)
	}
	return broker, db
}

// The REST API is a handler.
func ExampleNew() {
	ctx := context.Background()
	broker, db := exampleBroker(ctx, fastpubsub.Config{})
	defer db.Close()

	api := httpapi.New(broker, httpapi.Config{Logger: slog.New(slog.DiscardHandler)}) // by default it logs to slog.Default()
	server := httptest.NewServer(api)                                                 // a service has a http.Server
	defer server.Close()

	answer, err := http.Post(server.URL+"/topics/orders/messages", "application/json", strings.NewReader(`[{"order": 1}]`))
	if err != nil {
		panic(err)
	}
	answer.Body.Close()
	fmt.Println(answer.Status)

	msgs, err := broker.Consume(ctx, "emails", fastpubsub.ConsumeOptions{Consumer: "worker-1"})
	if err != nil {
		panic(err)
	}
	for _, msg := range msgs {
		fmt.Println(string(msg.Payload))
	}
	// Output:
	// 204 No Content
	// {"order": 1}
}

// Beside the routes of a program, with its metrics, for clients that have a token.
func ExampleNew_embedded() {
	ctx := context.Background()
	broker, db := exampleBroker(ctx, fastpubsub.Config{Tokens: fastpubsub.TokenSettings{Key: "0123456789abcdef"}})
	defer db.Close()

	registry := prometheus.NewRegistry() // the one that the program has
	api := httpapi.New(broker, httpapi.Config{Logger: slog.New(slog.DiscardHandler), Registerer: registry, Authenticate: true})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") })
	mux.Handle("/pubsub/", http.StripPrefix("/pubsub", api))
	server := httptest.NewServer(mux)
	defer server.Close()

	for _, path := range []string{"/hello", "/pubsub/topics", "/pubsub/readiness"} {
		answer, err := http.Get(server.URL + path)
		if err != nil {
			panic(err)
		}
		answer.Body.Close()
		fmt.Println(path, answer.StatusCode)
	}
	// Output:
	// /hello 200
	// /pubsub/topics 401
	// /pubsub/readiness 200
}

// Without it Shutdown would wait for the consumers that wait for messages, up to 30 seconds.
func ExampleAPI_EndWaits() {
	ctx := context.Background()
	broker, db := exampleBroker(ctx, fastpubsub.Config{})
	defer db.Close()

	api := httpapi.New(broker, httpapi.Config{Logger: slog.New(slog.DiscardHandler)})
	arrived := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		api.ServeHTTP(w, r)
	}))
	defer server.Close()
	server.Config.RegisterOnShutdown(api.EndWaits)

	waited := make(chan string)
	go func() {
		answer, err := http.Get(server.URL + "/subscriptions/emails/messages?consumer_id=worker-1&wait_seconds=30")
		if err != nil {
			panic(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			panic(err)
		}
		waited <- string(text)
	}()
	<-arrived
	shutdown, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := server.Config.Shutdown(shutdown); err != nil {
		panic(err)
	}
	fmt.Println(<-waited)
	// Output: {"data":[]}
}

// Maintenance is counted where the broker runs.
func ExampleMaintenanceMetrics() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	registry := prometheus.NewRegistry() // also that of httpapi.Config
	count := httpapi.MaintenanceMetrics(registry)
	broker, db := exampleBroker(ctx, fastpubsub.Config{OnMaintenance: func(pass fastpubsub.MaintenancePass) {
		count(pass)
		stop() // the end of this example
	}})
	defer db.Close()

	if err := broker.Run(ctx); err != nil {
		panic(err)
	}
	families, err := registry.Gather()
	if err != nil {
		panic(err)
	}
	for _, family := range families {
		if family.GetName() == "fastpubsub_maintenance_passes_total" {
			fmt.Println(family.GetName(), family.GetMetric()[0].GetCounter().GetValue())
		}
	}
	// Output: fastpubsub_maintenance_passes_total 1
}
