package otelfastpubsub_test

import (
	"context"
	"fmt"
	"log/slog"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/fastpubsub/fastpubsub"
	otelfastpubsub "github.com/fastpubsub/fastpubsub/otel"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A trace that begins with a request goes on in the handler.
func Example() {
	ctx := context.Background()
	db, err := storetest.Open(ctx, "example")
	if err != nil {
		panic(err)
	}
	defer db.Close()

	spans := tracetest.NewSpanRecorder() // of a service, an exporter
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	hooks, err := otelfastpubsub.New(otelfastpubsub.Config{TracerProvider: tracers})
	if err != nil {
		panic(err)
	}
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema, Hooks: hooks, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	if _, err := broker.CreateTopic(ctx, "orders"); err != nil {
		panic(err)
	}
	if _, err := broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "emails", TopicID: "orders"}); err != nil {
		panic(err)
	}

	requested, request := tracers.Tracer("shop").Start(ctx, "POST /orders")
	if _, err := broker.Publish(requested, "orders", fastpubsub.JSON(map[string]string{"customer": "ann"})); err != nil {
		panic(err)
	}
	request.End()

	receiving, cancel := context.WithCancel(ctx)
	defer cancel()
	err = broker.Receive(receiving, "emails", func(ctx context.Context, msg fastpubsub.Message) error {
		_, mail := tracers.Tracer("mailer").Start(ctx, "send mail")
		defer mail.End()
		cancel() // the end of this example
		return nil
	}, fastpubsub.ReceiveOptions{Concurrency: 1})
	if err != nil {
		panic(err)
	}

	names := map[string]string{request.SpanContext().SpanID().String(): "POST /orders"}
	for _, span := range spans.Ended() {
		names[span.SpanContext().SpanID().String()] = span.Name()
	}
	for _, span := range spans.Ended() {
		if span.Parent().IsValid() && span.SpanContext().TraceID() == request.SpanContext().TraceID() {
			fmt.Println(span.Name(), "in", names[span.Parent().SpanID().String()])
		}
	}
	// Output:
	// publish orders in POST /orders
	// send mail in process emails
	// process emails in publish orders
}
