// Package otelfastpubsub traces and measures what a [fastpubsub.Broker] does, with OpenTelemetry. It is a module of its own, so that
// only those who want it link OpenTelemetry.
//
//	hooks, err := otelfastpubsub.New(otelfastpubsub.Config{}) // of otel's global providers
//	broker, err := fastpubsub.New(pool, fastpubsub.Config{Hooks: hooks})
//
// A trace goes on from who publishes to who handles: the context of the publish span travels in the attributes traceparent and
// tracestate of each message, in the form of W3C Trace Context. A message that has one of these already keeps it, and a message
// with 63 or 64 attributes of its own goes without: 64 is the limit. Others see them too: whoever consumes by the REST API, and
// dead letters. They add some 100 bytes to a message that is published alone, and 2 to each of a hundred in one call, which are
// stored together and compressed; more with a tracestate.
//
// # Spans
//
// Names, kinds and attributes are those of the semantic conventions for messaging, version 1.43.0, whose state is "development".
//
//   - "publish TOPIC" (producer, send): a call of Publish or PublishTx. PublishTx has published nothing before its transaction
//     commits, which is not seen.
//   - "process SUBSCRIPTION" (consumer, process): a message in Receive or ReceiveTx, from before the handler to when it is known what
//     becomes of it, as messaging.fastpubsub.outcome says. It is a child of the publish span, and has a link to it. The
//     transaction of ReceiveTx is in it, and its ack a child.
//   - "consume SUBSCRIPTION" (client, receive): a Consume that took messages, or failed; with links to what published them.
//   - "ack SUBSCRIPTION" and "nack SUBSCRIPTION" (client, settle), "extend", "reprocess" and "purge".
//
// What Receive does for itself has no spans: it takes messages ahead, and acks many at once, which belong to many traces. It is in
// the metrics. Consumer spans have the subscription in their names where the conventions would have the topic, which a consumer
// does not always know, and which several subscriptions share.
//
// Texts of errors are in spans, those of handlers as well. Payloads are not, nor attributes of messages.
//
// # Metrics
//
//   - messaging.client.operation.duration, a histogram in seconds: of all but handlers
//   - messaging.process.duration, a histogram in seconds: of handlers
//   - messaging.client.sent.messages, a counter; with error.type those that were not published
//   - messaging.client.consumed.messages, a counter: deliveries to this process
//   - messaging.fastpubsub.settled.messages, a counter by operation: ack and nack
//   - messaging.fastpubsub.dead_letters, a counter: as many as this process knows of; see [fastpubsub.Operation]
//
// They have topics and subscriptions as attributes, but for what was refused: anybody might name any.
package otelfastpubsub

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/fastpubsub/fastpubsub"
)

const (
	scope  = "github.com/fastpubsub/fastpubsub/otel"
	system = "fastpubsub"

	attemptKey     = attribute.Key("messaging.fastpubsub.message.delivery_attempts")
	outcomeKey     = attribute.Key("messaging.fastpubsub.outcome")
	deadLettersKey = attribute.Key("messaging.fastpubsub.dead_letters")
	inTxKey        = attribute.Key("messaging.fastpubsub.in_transaction")
)

// Config is the settings of [New]. The zero Config is a good one.
type Config struct {
	// TracerProvider makes the spans. Default otel.GetTracerProvider().
	TracerProvider trace.TracerProvider
	// MeterProvider makes the metrics. Default otel.GetMeterProvider().
	MeterProvider metric.MeterProvider
	// Propagator says what travels with a message. Default propagation.TraceContext{}: with Baggage, that would be stored beside
	// each message.
	Propagator propagation.TextMapPropagator
	// Attributes are given to all spans and metrics, such as server.address.
	Attributes []attribute.KeyValue
	// Linked has each handler begin a trace of its own, with a link to the span that published the message. Default is to go on
	// with that one's trace, which may become long: each message has one handler for each subscription.
	Linked bool
}

// Hooks are [fastpubsub.Hooks] for OpenTelemetry. They are safe for concurrent use, by any number of brokers.
type Hooks struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	attributes []attribute.KeyValue
	linked     bool

	operation   messagingconv.ClientOperationDuration
	process     messagingconv.ProcessDuration
	sent        messagingconv.ClientSentMessages
	consumed    messagingconv.ClientConsumedMessages
	settled     metric.Int64Counter
	deadLetters metric.Int64Counter
}

var _ fastpubsub.Hooks = (*Hooks)(nil)

// New returns Hooks. It returns the errors of the MeterProvider.
func New(config Config) (*Hooks, error) {
	if config.TracerProvider == nil {
		config.TracerProvider = otel.GetTracerProvider()
	}
	if config.MeterProvider == nil {
		config.MeterProvider = otel.GetMeterProvider()
	}
	if config.Propagator == nil {
		config.Propagator = propagation.TraceContext{}
	}
	h := &Hooks{
		tracer:     config.TracerProvider.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		propagator: config.Propagator,
		attributes: append([]attribute.KeyValue{semconv.MessagingSystemKey.String(system)}, config.Attributes...),
		linked:     config.Linked,
	}
	meter := config.MeterProvider.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	errs := make([]error, 6)
	h.operation, errs[0] = messagingconv.NewClientOperationDuration(meter, seconds)
	h.process, errs[1] = messagingconv.NewProcessDuration(meter, seconds)
	h.sent, errs[2] = messagingconv.NewClientSentMessages(meter)
	h.consumed, errs[3] = messagingconv.NewClientConsumedMessages(meter)
	h.settled, errs[4] = meter.Int64Counter("messaging.fastpubsub.settled.messages", metric.WithUnit("{message}"),
		metric.WithDescription("Number of messages that were acked, or given back."))
	h.deadLetters, errs[5] = meter.Int64Counter("messaging.fastpubsub.dead_letters", metric.WithUnit("{message}"),
		metric.WithDescription("Number of messages that became dead letters, as far as the process knows."))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return h, nil
}

// seconds are the bounds that the conventions advise for durations.
var seconds = metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

// Context returns ctx with the span that published a message as the parent of what follows, for those who take messages by
// Consume and handle them by themselves. It is ctx where the message has no trace.
func (h *Hooks) Context(ctx context.Context, msg fastpubsub.Message) context.Context {
	return h.propagator.Extract(ctx, propagation.MapCarrier(msg.Attributes))
}

type spanKey struct{}

// A started is the span of an operation.
type started struct {
	op   *fastpubsub.Operation
	span trace.Span
}

// Start implements [fastpubsub.Hooks].
func (h *Hooks) Start(ctx context.Context, op *fastpubsub.Operation) context.Context {
	options := []trace.SpanStartOption{trace.WithTimestamp(op.Began), trace.WithAttributes(h.spanAttributes(op)...)}
	kind := trace.SpanKindClient
	switch op.Kind {
	case fastpubsub.OpConsume, fastpubsub.OpSweep:
		return ctx // whether there is anything to tell is known in the end
	case fastpubsub.OpPublish:
		kind = trace.SpanKindProducer
		for _, msg := range op.New {
			options = h.link(options, msg.Attributes)
		}
	case fastpubsub.OpHandle:
		kind = trace.SpanKindConsumer
		msg := op.Messages[0]
		options = h.link(options, msg.Attributes)
		if h.linked {
			options = append(options, trace.WithNewRoot())
		} else {
			ctx = h.Context(ctx, msg)
		}
	default:
		if op.Receiver {
			return ctx
		}
	}
	ctx, span := h.tracer.Start(ctx, spanName(op), append(options, trace.WithSpanKind(kind))...)
	if op.Kind == fastpubsub.OpPublish {
		carrier := propagation.MapCarrier{}
		h.propagator.Inject(ctx, carrier)
		op.Attributes = carrier
	}
	return context.WithValue(ctx, spanKey{}, started{op, span})
}

// link adds a link to the span that attributes of a message tell of.
func (h *Hooks) link(options []trace.SpanStartOption, attributes map[string]string) []trace.SpanStartOption {
	if len(attributes) == 0 {
		return options
	}
	creation := trace.SpanContextFromContext(h.propagator.Extract(context.Background(), propagation.MapCarrier(attributes)))
	if !creation.IsValid() {
		return options
	}
	return append(options, trace.WithLinks(trace.Link{SpanContext: creation}))
}

// End implements [fastpubsub.Hooks].
func (h *Hooks) End(ctx context.Context, op *fastpubsub.Operation) {
	h.measure(ctx, op)
	s, _ := ctx.Value(spanKey{}).(started)
	switch {
	case s.op == op:
	case op.Kind == fastpubsub.OpConsume && !op.Receiver && (op.Count > 0 || op.Err != nil):
		options := []trace.SpanStartOption{trace.WithTimestamp(op.Began), trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(h.spanAttributes(op)...)}
		for _, msg := range op.Messages {
			options = h.link(options, msg.Attributes)
		}
		_, s.span = h.tracer.Start(ctx, spanName(op), options...)
	default:
		return
	}
	if op.Kind == fastpubsub.OpPublish && len(op.IDs) == 1 {
		s.span.SetAttributes(semconv.MessagingMessageID(op.IDs[0].String()))
	}
	if op.Kind == fastpubsub.OpHandle {
		s.span.SetAttributes(outcomeKey.String(string(op.Outcome)))
	}
	if op.DeadLetters > 0 {
		s.span.SetAttributes(deadLettersKey.Int(op.DeadLetters))
	}
	if failed(op) {
		s.span.SetAttributes(errorType(op.Err))
		s.span.RecordError(op.Err)
		text, _, _ := strings.Cut(op.Err.Error(), "\n") // without the stack of a panic
		s.span.SetStatus(codes.Error, text)
	}
	s.span.End(trace.WithTimestamp(op.Began.Add(op.Took)))
}

// failed is false for a handler that cannot do its work yet.
func failed(op *fastpubsub.Operation) bool {
	return op.Err != nil && op.Outcome != fastpubsub.OutcomeSnoozed
}

func operationName(op *fastpubsub.Operation) string {
	if op.Kind == fastpubsub.OpHandle {
		return "process"
	}
	return string(op.Kind)
}

func spanName(op *fastpubsub.Operation) string {
	if op.Kind == fastpubsub.OpPublish {
		return operationName(op) + " " + op.TopicID
	}
	return operationName(op) + " " + op.SubscriptionID
}

// common are the attributes of spans and metrics.
func (h *Hooks) common(op *fastpubsub.Operation) []attribute.KeyValue {
	all := append(make([]attribute.KeyValue, 0, len(h.attributes)+8), h.attributes...)
	switch op.Kind {
	case fastpubsub.OpPublish:
		all = append(all, semconv.MessagingOperationTypeSend)
	case fastpubsub.OpConsume:
		all = append(all, semconv.MessagingOperationTypeReceive)
	case fastpubsub.OpHandle:
		all = append(all, semconv.MessagingOperationTypeProcess)
	case fastpubsub.OpAck, fastpubsub.OpNack:
		all = append(all, semconv.MessagingOperationTypeSettle)
	}
	return append(all, semconv.MessagingOperationName(operationName(op)))
}

func destination(all []attribute.KeyValue, op *fastpubsub.Operation) []attribute.KeyValue {
	if op.TopicID != "" {
		all = append(all, semconv.MessagingDestinationName(op.TopicID))
	}
	if op.SubscriptionID != "" {
		all = append(all, semconv.MessagingDestinationSubscriptionName(op.SubscriptionID))
	}
	return all
}

func (h *Hooks) spanAttributes(op *fastpubsub.Operation) []attribute.KeyValue {
	all := destination(h.common(op), op)
	if op.InTx {
		all = append(all, inTxKey.Bool(true))
	}
	switch n := len(op.New) + len(op.Messages) + len(op.Deliveries); {
	case op.Kind == fastpubsub.OpHandle:
		delivery := op.Messages[0].Delivery
		return append(all, semconv.MessagingMessageID(delivery.ID.String()), attemptKey.Int(delivery.DeliveryAttempts))
	case op.Kind == fastpubsub.OpPublish && n == 1:
		return all
	case len(op.Deliveries) == 1:
		return append(all, semconv.MessagingMessageID(op.Deliveries[0].ID.String()))
	default:
		return append(all, semconv.MessagingBatchMessageCount(n))
	}
}

func (h *Hooks) measure(ctx context.Context, op *fastpubsub.Operation) {
	all := h.common(op)
	if !errors.Is(op.Err, fastpubsub.ErrNotFound) && !errors.Is(op.Err, fastpubsub.ErrInvalid) {
		all = destination(all, op)
	}
	if failed(op) {
		all = append(all, errorType(op.Err))
	}
	set := attribute.NewSet(all...)
	with := metric.WithAttributeSet(set)
	switch op.Kind {
	case fastpubsub.OpHandle:
		set = attribute.NewSet(append(all, outcomeKey.String(string(op.Outcome)))...)
		h.process.RecordSet(ctx, op.Took.Seconds(), set)
		return
	case fastpubsub.OpPublish:
		h.sent.AddSet(ctx, int64(len(op.New)), set)
	case fastpubsub.OpConsume:
		if op.Count > 0 {
			h.consumed.AddSet(ctx, int64(op.Count), set)
		}
	case fastpubsub.OpAck, fastpubsub.OpNack:
		if op.Count > 0 {
			h.settled.Add(ctx, int64(op.Count), with)
		}
	}
	if op.DeadLetters > 0 {
		h.deadLetters.Add(ctx, int64(op.DeadLetters), with)
	}
	h.operation.RecordSet(ctx, op.Took.Seconds(), set)
}

// errorTypes are names for errors that are known here; the first that matches counts.
var errorTypes = []struct {
	err  error
	name string
}{
	{fastpubsub.ErrInvalid, "invalid"},
	{fastpubsub.ErrNotFound, "not_found"},
	{fastpubsub.ErrBusy, "busy"},
	{fastpubsub.ErrSchemaOutdated, "schema_outdated"},
	{fastpubsub.ErrBinaryOutdated, "binary_outdated"},
	{fastpubsub.ErrRestored, "restored"},
	{fastpubsub.ErrLeaseLost, "lease_lost"},
	{fastpubsub.ErrStopping, "stopping"},
	{context.DeadlineExceeded, "timeout"},
	{context.Canceled, "canceled"},
}

// errorType is one of errorTypes, an SQLSTATE, or the type of the error.
func errorType(err error) attribute.KeyValue {
	for _, t := range errorTypes {
		if errors.Is(err, t.err) {
			return semconv.ErrorTypeKey.String(t.name)
		}
	}
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) {
		return semconv.ErrorTypeKey.String(pgErr.Code)
	}
	return semconv.ErrorType(err)
}
