package fastpubsub

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/store"
)

// Hooks see what a [Broker] does with messages: for traces, metrics and logs. They are called by the goroutine that works, which
// waits for them, and by many at the same time. They must not panic, and must not change what an [Operation] leads to, nor
// keep that after End: copy what is needed. The module fastpubsub/otel has Hooks for OpenTelemetry.
//
// They see what this Broker is asked to do, and what its Receive, ReceiveTx and Run do by themselves; what is refused for its
// options, or for the schema, is seen of publishing only. They do not see other processes, nor what the database does by itself.
// That concerns dead letters: see [Operation].DeadLetters. In a caller's transaction they see the call, and not whether it is
// committed.
type Hooks interface {
	// Start is called before an operation. What it returns, which must be ctx or come from it, is the context of the operation:
	// a handler gets it, statements run with it, and so does End. Calls of Publish that share a statement are the exception:
	// that has the context of one of them.
	Start(ctx context.Context, op *Operation) context.Context
	// End is called after the operation, once for each Start unless a panic goes through the operation to its caller. The
	// context may have been cancelled meanwhile.
	End(ctx context.Context, op *Operation)
}

// An OperationKind is what an [Operation] does.
type OperationKind string

// The kinds of operations. Those that one statement does are one Operation, whatever the number of messages.
const (
	OpPublish   OperationKind = "publish"   // a call of Publish or PublishTx
	OpConsume   OperationKind = "consume"   // a statement that takes messages, or finds none: of those a Consume that waits has several
	OpHandle    OperationKind = "handle"    // a message in Receive or ReceiveTx, until it is known what becomes of it
	OpAck       OperationKind = "ack"       // also by ReceiveTx, as the first thing in its transaction
	OpNack      OperationKind = "nack"      // also what Receive gives back uncounted
	OpExtend    OperationKind = "extend"    // an ack deadline; zero gives back
	OpReprocess OperationKind = "reprocess" // of dead letters
	OpPurge     OperationKind = "purge"     // of dead letters
	OpSweep     OperationKind = "sweep"     // of what has expired, a step of CleanupStuck for one subscription
)

// An Outcome is what becomes of a message that was handled. But for those of ReceiveTx the ack or nack follows behind; an
// operation of that kind tells when it is done.
type Outcome string

// The outcomes of handling a message.
const (
	OutcomeAcked      Outcome = "acked"       // with ReceiveTx: the transaction is committed
	OutcomeRetry      Outcome = "retry"       // it failed, and is delivered again after the backoff
	OutcomeDeadLetter Outcome = "dead_letter" // it failed for good, or for the last time
	OutcomeSnoozed    Outcome = "snoozed"     // it is delivered again, and this delivery does not count
	OutcomeReturned   Outcome = "returned"    // likewise, at once: Receive is stopping, or ReceiveTx could not begin a transaction
	OutcomeLost       Outcome = "lost"        // it is no longer with this consumer: nothing is done about it
)

// An Operation is something that is done with messages. It is the same one in Start and in End. Payloads and attributes in it
// belong to the caller.
type Operation struct {
	Kind           OperationKind
	TopicID        string // of OpPublish, and of OpHandle
	SubscriptionID string // of the others, and of OpHandle
	InTx           bool   // in a transaction of the caller's, or of ReceiveTx; whether that commits is not known here
	Receiver       bool   // done by Receive or ReceiveTx for itself, ahead of the handlers or behind them, for messages of many publishers

	New        []NewMessage // what OpPublish publishes
	Messages   []Message    // the one of OpHandle; what OpConsume took, in End
	Deliveries []Delivery   // of which the operation is asked; DeliveryAttempts is 0 for OpAck, OpReprocess and OpPurge

	// Attributes may be set by Start of OpPublish: they are added to those of each message, for a trace to go on at consumers.
	// A message goes without them that has one of the keys itself, or that would have more than 64 in all, or if one breaks
	// the rules for attributes. Consumers see them as they see others, also by the REST API. They make each message as much
	// larger as their JSON is.
	Attributes map[string]string

	// What follows is known in End.

	IDs     []ID    // of what OpPublish published, in the order of New
	Count   int     // messages that it was done to; 1 for OpHandle
	Outcome Outcome // of OpHandle
	// DeadLetters is how many of them became dead letters, as far as this process knows: by OpNack with DeadLetter, or for
	// handlers that failed for the last time, and by OpSweep. The database makes dead letters by itself in two more cases, and
	// counts them in Metrics only: when a Nack of the caller's without DeadLetter uses up the attempts, and when whoever
	// consumes finds that ack deadlines have passed.
	DeadLetters int
	Err         error // what the caller, or Receive, gets; of OpHandle what the handler returned, or its panic with the stack

	Began time.Time
	Took  time.Duration

	dies bool // those that it is done to become dead letters
}

// hooks calls Hooks, if there are any.
type hooks struct{ Hooks }

func (h hooks) start(ctx context.Context, op Operation) (context.Context, *Operation) {
	if h.Hooks == nil {
		return ctx, nil
	}
	started := new(Operation) // &op would be allocated without hooks, too
	*started = op
	started.Receiver = ctx.Value(receiverKey{}) != nil
	started.Began = time.Now()
	return h.Start(ctx, started), started
}

// end is for what start returned.
func (h hooks) end(ctx context.Context, op *Operation, count int, err error) {
	if op == nil {
		return
	}
	op.Count, op.Err, op.Took = count, err, time.Since(op.Began)
	if op.dies {
		op.DeadLetters = count
	}
	h.End(ctx, op)
}

func (h hooks) startHandling(ctx context.Context, r *receiver, it *item) (context.Context, *Operation) {
	if h.Hooks == nil {
		return ctx, nil
	}
	return h.start(ctx, Operation{Kind: OpHandle, TopicID: r.topic, SubscriptionID: r.id, InTx: r.tx != nil, Messages: []Message{it.msg}})
}

func (h hooks) endHandling(ctx context.Context, op *Operation, outcome Outcome, err error) {
	if op == nil {
		return
	}
	if errors.Is(err, errCommitted) || errors.Is(err, errNotOurs) {
		err = nil
	}
	op.Outcome = outcome
	h.end(ctx, op, 1, err)
}

type receiverKey struct{}

// byReceiver is for what a receiver does for itself.
func byReceiver(ctx context.Context) context.Context {
	return context.WithValue(ctx, receiverKey{}, true)
}

func isTx(db store.DBTX) bool {
	_, ok := db.(pgx.Tx)
	return ok
}

// withAttributes are a message's attributes and those of the hooks, unless these do not fit.
func withAttributes(own, hooked map[string]string) map[string]string {
	if len(hooked) == 0 || len(own)+len(hooked) > maxAttributes {
		return own
	}
	for key := range hooked {
		if _, ok := own[key]; ok {
			return own
		}
	}
	if len(own) == 0 {
		return hooked
	}
	all := maps.Clone(own)
	maps.Copy(all, hooked)
	return all
}
