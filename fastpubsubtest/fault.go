package fastpubsubtest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/unsettled"
)

// A Fault is what goes wrong after a handler has done its work. The message then comes again, unless that is said below: a
// handler that is idempotent does not mind.
type Fault string

const (
	// NoFault is what is usual.
	NoFault Fault = ""
	// CrashAfterHandler is a process that dies when the handler has returned. There is neither an ack nor a nack: the message stays
	// with the consumer until its ack deadline. What a TxHandler wrote with its transaction is rolled back.
	CrashAfterHandler Fault = "crash after handler"
	// LostAck is an ack that does not arrive, or a nack. After a Handler it leaves what CrashAfterHandler does. After a
	// TxHandler that returned nil the transaction is committed, with the ack in it, but the consumer hears of an error: the
	// message is done, and does not come again.
	LostAck Fault = "lost ack"
)

// FirstDelivery is for [DrainOptions].Fault: what goes wrong with the first delivery of each message, and with no other.
func FirstDelivery(fault Fault) func(fastpubsub.Message) Fault {
	return func(msg fastpubsub.Message) Fault {
		if msg.DeliveryAttempts == 1 {
			return fault
		}
		return NoFault
	}
}

func checkFault(fault Fault) error {
	switch fault {
	case NoFault, CrashAfterHandler, LostAck:
		return nil
	}
	return fmt.Errorf("Fault must be NoFault, CrashAfterHandler or LostAck, not %q", string(fault))
}

// A Call is one call of a handler.
type Call struct {
	Message fastpubsub.Message // as the handler got it
	Err     error              // what the handler returned; of a panic, what it said
	Fault   Fault              // what went wrong then
}

// calls are those of one handler.
type calls struct {
	fault   func(fastpubsub.Message) Fault
	ended   func() // is called after each; may be nil
	options fastpubsub.ReceiveOptions

	mu      sync.Mutex // protects the rest
	all     []Call
	running int
	bad     error // a Fault that is none
}

// newCalls is for a Receive that takes one message after the other: it takes none while the handler has one.
func newCalls(fault func(fastpubsub.Message) Fault, ended func()) *calls {
	return &calls{fault: fault, ended: ended, options: fastpubsub.ReceiveOptions{
		Consumer: "fastpubsubtest", Concurrency: 1, MaxMessages: 1,
	}}
}

func (c *calls) handler(handle fastpubsub.Handler) fastpubsub.Handler {
	if handle == nil {
		return nil // Receive says so
	}
	return func(ctx context.Context, msg fastpubsub.Message) error {
		return c.call(msg, func() error { return handle(ctx, msg) }, nil)
	}
}

func (c *calls) txHandler(handle fastpubsub.TxHandler) fastpubsub.TxHandler {
	if handle == nil {
		return nil
	}
	return func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
		return c.call(msg, func() error { return handle(ctx, tx, msg) }, func() error { return tx.Commit(ctx) })
	}
}

var errGoexit = errors.New("the handler ended its goroutine, as FailNow and Fatal of a test do")

// call calls a handler and returns what Receive is to make of it. commit is that of the handler's transaction, if it has one.
func (c *calls) call(msg fastpubsub.Message, handle, commit func() error) (err error) {
	call := Call{Message: msg, Err: errGoexit, Fault: c.faultOf(msg)}
	defer func() {
		v := recover()
		if v != nil {
			call.Err = fmt.Errorf("panic: %v", v)
		}
		err = c.settle(call, commit)
		c.end(call)
		if v != nil && call.Fault == NoFault {
			panic(v) // as it would have been
		}
	}()
	call.Err = handle()
	return nil // see above
}

// settle lets the fault happen.
func (c *calls) settle(call Call, commit func() error) error {
	switch {
	case call.Fault == NoFault:
		return call.Err
	case call.Fault == LostAck && commit != nil && call.Err == nil:
		// Receive's own commit fails now, and its nack finds the message acked.
		return commit()
	default:
		return unsettled.Err
	}
}

func (c *calls) faultOf(msg fastpubsub.Message) Fault {
	fault := NoFault
	if c.fault != nil {
		fault = c.fault(msg)
	}
	err := checkFault(fault)
	if err != nil {
		fault = NoFault
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running++
	c.bad = errors.Join(c.bad, err)
	return fault
}

func (c *calls) end(call Call) {
	c.mu.Lock()
	c.running--
	c.all = append(c.all, call)
	c.mu.Unlock()
	if c.ended != nil {
		c.ended()
	}
}

func (c *calls) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running > 0
}

// soFar returns the calls that have ended.
func (c *calls) soFar() ([]Call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all, c.bad
}
