package fastpubsub

import (
	"context"
	"errors"
	"iter"
	"log/slog"
)

// A Received is a message in a loop over [Broker.Messages]. It is used in the loop's body only, by one goroutine at a time.
type Received struct {
	Message

	ctx     context.Context
	outcome error      // what Settle said
	settled bool       // that it did
	done    chan error // what becomes of it
}

// Context is for the work on the message. It is cancelled, with a cause, as that of a [Handler] is.
func (m *Received) Context() context.Context { return m.ctx }

// Settle says how the work on the message went, as a [Handler] does by what it returns: nil acks it, an error gives it back
// to be delivered again after the backoff, [Permanent] makes it a dead letter, [Snooze] delays it. It is done when the loop's
// body ends; the last call counts. A message about which nothing is said is acked when the loop goes on to the next.
func (m *Received) Settle(err error) { m.outcome, m.settled = err, true }

var (
	errLoopLeft  = errors.New("the loop was left, and Settle not called")
	errLoopPanic = errors.New("the loop ended by a panic or runtime.Goexit")
)

// Messages is [Broker.Receive] for a loop that handles one message at a time:
//
//	for msg, err := range broker.Messages(ctx, "emails", fastpubsub.ReceiveOptions{}) {
//		if err != nil {
//			return err
//		}
//		msg.Settle(mail(msg.Context(), msg.Payload))
//	}
//
// Messages are taken ahead and acked many at once behind the loop, as by Receive, and options mean the same; Concurrency must be
// 0 or 1. Several loops may go on at once, in one process or many.
//
// The loop goes on until ctx ends, and then ends by itself, when the body has. An error, one of those that Receive returns, comes
// with a nil message and is the last. Where the loop is left by break, return or a panic, the message at hand has failed, unless
// Settle was called before break or return. What was taken ahead is given back, which does not count as an attempt, and the loop is left when the acks have been sent, which may take 5 seconds while the database is away; those that could
// not be sent are logged, and their messages come again.
func (b *Broker) Messages(ctx context.Context, subscriptionID string, options ReceiveOptions) iter.Seq2[*Received, error] {
	return MessagesFrom(ctx, b, subscriptionID, options)
}

// MessagesFrom is [Broker.Messages] for any source of messages; see [ReceiveFrom].
func MessagesFrom(ctx context.Context, source Source, subscriptionID string, options ReceiveOptions) iter.Seq2[*Received, error] {
	return func(yield func(*Received, error) bool) {
		if options.Concurrency == 0 {
			options.Concurrency = 1
		}
		var p problems
		checkRange(&p, "concurrency", options.Concurrency, 1, 1)
		if err := p.err(); err != nil {
			yield(nil, err)
			return
		}
		r, err := newReceiver(ctx, source, nil, subscriptionID, options, false)
		if err != nil {
			if ctx.Err() == nil {
				yield(nil, err)
			}
			return
		}
		ctx, stop := context.WithCancel(ctx)
		next := make(chan *Received)
		r.handle = func(handling context.Context, it *item) error {
			msg := &Received{Message: it.msg, ctx: handling, done: make(chan error, 1)}
			select {
			case next <- msg:
				return <-msg.done
			case <-ctx.Done():
				return errNotBegun
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- r.run(ctx) }()
		running := true
		defer func() { // after a panic, too
			stop()
			if !running {
				return
			}
			if err := <-ended; err != nil {
				r.options.Logger.LogAttrs(ctx, slog.LevelWarn, "loop over messages was left", slog.Any("error", err))
			}
		}()
		for {
			select {
			case msg := <-next:
				if !msg.handle(yield) {
					return
				}
			case err := <-ended:
				running = false
				if err != nil {
					yield(nil, err)
				}
				return
			}
		}
	}
}

// handle has the loop's body work on the message. It returns whether the loop goes on.
func (m *Received) handle(yield func(*Received, error) bool) (more bool) {
	returned := false
	defer func() {
		switch {
		case !returned:
			m.done <- errLoopPanic
		case m.settled:
			m.done <- m.outcome
		case more:
			m.done <- nil
		default:
			m.done <- errLoopLeft
		}
	}()
	more = yield(m, nil)
	returned = true
	return more
}
