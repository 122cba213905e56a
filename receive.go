package fastpubsub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// ReceiveOptions say how [Broker.Receive] and [Broker.ReceiveTx] work. The zero ReceiveOptions are good ones.
type ReceiveOptions struct {
	// Consumer names who takes the messages, for people who look. 1 to 128 characters. Default the host's name and the
	// number of the process.
	Consumer string
	// Concurrency is how many handlers run at once, 1 to 10,000. Default 16. Each of ReceiveTx needs a connection of the pool: there
	// it must be less than those, and the default is half of them if that is less than 16.
	Concurrency int
	// MaxMessages is how many messages are held at most, with a handler or waiting for one. At least Concurrency. Default 1,000
	// or twice the Concurrency, whichever is more. How many wait goes by how fast handlers are: those of about a quarter of
	// a second.
	MaxMessages int
	// MaxBytes is how many bytes of payloads are held, in about: messages are taken by the size of those before. Default
	// 64 MiB.
	MaxBytes int
	// AckDeadline is how long a message is out of reach for others after this process has died, in whole seconds from 1
	// second to 12 hours. It is extended while a handler works. Default the subscription's.
	AckDeadline time.Duration
	// MaxHandling is how long a handler may work on a message. Then its context is cancelled and others get the message.
	// Default 1 hour.
	MaxHandling time.Duration
	// ShutdownTimeout is how long handlers may go on after ctx has ended, before their contexts are cancelled. Default 10
	// seconds.
	ShutdownTimeout time.Duration
	// Logger is told what goes wrong. Default the Broker's; of another [Source], slog.Default().
	Logger *slog.Logger
}

const (
	defaultConcurrency = 16
	maxConcurrency     = 10_000
	aheadFor           = 250 * time.Millisecond // of handling, fetched ahead
	rateWindow         = 5 * time.Millisecond   // at least
	ackGather          = 5 * time.Millisecond
	nackGather         = 20 * time.Millisecond
	gatherEnough       = 256
	callTimeout        = 30 * time.Second
	finalTimeout       = 5 * time.Second // for the last acks, after the last handler
	retryFrom          = 50 * time.Millisecond
	retryUpTo          = 5 * time.Second
)

var (
	// ErrLeaseLost is the cause of a handler's cancelled context when the message is no longer this consumer's: its ack
	// deadline could not be extended, because the database was away for too long for example, or [ReceiveOptions].MaxHandling
	// is over.
	ErrLeaseLost = errors.New("the message is no longer with this consumer")
	// ErrStopping is the cause of a handler's cancelled context when the shutdown has taken as long as it may.
	ErrStopping = errors.New("the consumer is stopping")
)

// A Handler does what a message is for. If it returns nil, the message is acked; an error gives it back, to be delivered again
// after the backoff, unless that is of [Permanent] or [Snooze]. A panic is an error with its stack. ctx has the values
// of Receive's, and is cancelled with a cause, [ErrLeaseLost] or [ErrStopping].
type Handler func(ctx context.Context, msg Message) error

// A TxHandler does what a message is for in a transaction, which it must leave open. What it writes with tx and the ack are
// committed together if it returns nil. The rest is as with [Handler].
type TxHandler func(ctx context.Context, tx pgx.Tx, msg Message) error

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent is for a handler's error that another attempt would not mend: the message becomes a dead letter at once. Permanent(nil)
// is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type snoozeError struct{ d time.Duration }

func (e *snoozeError) Error() string { return fmt.Sprintf("snoozed for %v", e.d) }

// Snooze is for a handler that cannot do its work yet: the message is delivered again after d, rounded up to whole seconds, at
// most 366 days, and this delivery does not count as an attempt.
func Snooze(d time.Duration) error { return &snoozeError{d} }

// Decode is a Handler for payloads that [encoding/json] reads into a T. What it cannot read becomes a dead letter.
func Decode[T any](handle func(ctx context.Context, v T, msg Message) error) Handler {
	return func(ctx context.Context, msg Message) error {
		v, err := decodePayload[T](msg)
		if err != nil {
			return err
		}
		return handle(ctx, v, msg)
	}
}

// DecodeTx is Decode for ReceiveTx.
func DecodeTx[T any](handle func(ctx context.Context, tx pgx.Tx, v T, msg Message) error) TxHandler {
	return func(ctx context.Context, tx pgx.Tx, msg Message) error {
		v, err := decodePayload[T](msg)
		if err != nil {
			return err
		}
		return handle(ctx, tx, v, msg)
	}
}

func decodePayload[T any](msg Message) (v T, err error) {
	if err := json.Unmarshal(msg.Payload, &v); err != nil {
		return v, Permanent(fmt.Errorf("decode payload: %w", err))
	}
	return v, nil
}

// Receive hands the messages of a subscription to a handler, in as many goroutines as options say, until ctx ends. It takes
// messages ahead of need, acks and nacks many at once behind the handlers, and extends ack deadlines while these work. A
// message may be handled more than once, as after a crash; [Broker.ReceiveTx] is for effects that must not happen twice.
//
// When ctx ends it takes no more, gives back what no handler has begun with, which does not count as an attempt, waits for
// the handlers, and cancels their contexts after options.ShutdownTimeout. What fails because of that is given back without
// counting, too. It returns when all handlers have returned and their acks are sent: nil, or an error if some could not be.
//
// While the database is away, or has to be repaired, it tries again, at longer and longer intervals, and logs that it does. It
// returns ErrNotFound if there is no such subscription, or when it is deleted; an InvalidError for options out of range;
// ErrSchemaOutdated and ErrBinaryOutdated.
func (b *Broker) Receive(ctx context.Context, subscriptionID string, handle Handler, options ReceiveOptions) error {
	return ReceiveFrom(ctx, b, subscriptionID, handle, options)
}

// ReceiveFrom is [Broker.Receive] for any source of messages. It goes on after all errors of the source but those that Receive
// returns, and [ErrCredentials], [ErrNoTokens], [ErrToken] and [ErrScope].
func ReceiveFrom(ctx context.Context, source Source, subscriptionID string, handle Handler, options ReceiveOptions) error {
	r, err := newReceiver(ctx, source, nil, subscriptionID, options, handle == nil)
	if err != nil {
		return err
	}
	r.handle = func(ctx context.Context, it *item) error { return handle(ctx, it.msg) }
	return r.run(ctx)
}

// A receiver is one call of Receive or ReceiveTx.
type receiver struct {
	from     supply
	hooks    hooks
	tx       *Broker // of ReceiveTx, else nil
	id       string  // of the subscription
	options  ReceiveOptions
	consume  ConsumeOptions // but for Max
	topic    string
	attempts int // that the subscription allows
	deadline time.Duration
	handle   func(ctx context.Context, it *item) error

	handlers context.Context // what handlers' contexts come from
	workers  sync.WaitGroup
	stop     context.CancelCauseFunc // no more fetching

	room    chan struct{} // something was taken from the queue
	results chan struct{} // something is to be sent
	enough  chan struct{} // much is

	mu       sync.Mutex // protects the rest
	nonEmpty *sync.Cond // of queue, or stopping
	stopping bool
	queue    []*item
	running  map[*item]struct{}
	bytes    int // of queue and running
	average  int // bytes of a message; 0 before the first
	lastTook int
	finished int // since ratedAt
	ratedAt  time.Time
	rate     float64 // messages a second
	acks     []ID
	nacks    map[nackKind][]Delivery
	pending  int // deliveries in nacks
	oldest   time.Time
}

// An item is a message that is held.
type item struct {
	msg     Message
	expires time.Time // not before
	started time.Time
	cancel  context.CancelCauseFunc
	lost    bool
}

// nackKind is what nacks of one call have in common.
type nackKind struct {
	NackOptions
	dies bool // they become dead letters by it
}

func newReceiver(ctx context.Context, source Source, tx *Broker, subscriptionID string, o ReceiveOptions, noHandler bool) (*receiver, error) {
	var p problems
	if noHandler {
		p.add("handler", "missing", "must not be nil")
	}
	if o.Consumer == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		o.Consumer = fmt.Sprintf("%.100s:%d", host, os.Getpid())
	}
	highest := maxConcurrency
	if tx != nil {
		highest = min(highest, int(tx.pool.Config().MaxConns)-1)
	}
	if o.Concurrency == 0 {
		o.Concurrency = max(1, min(defaultConcurrency, (highest+1)/2))
	}
	checkRange(&p, "concurrency", o.Concurrency, 1, highest)
	if o.MaxMessages == 0 {
		o.MaxMessages = max(maxConsume, 2*o.Concurrency)
	}
	checkRange(&p, "max_messages", o.MaxMessages, o.Concurrency, math.MaxInt32)
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	checkRange(&p, "max_bytes", o.MaxBytes, 1, math.MaxInt)
	if o.MaxHandling == 0 {
		o.MaxHandling = time.Hour
	}
	if o.ShutdownTimeout == 0 {
		o.ShutdownTimeout = 10 * time.Second
	}
	if o.MaxHandling < 0 || o.ShutdownTimeout < 0 {
		p.add("timeouts", "greater_than_equal", "must not be negative")
	}
	consume := ConsumeOptions{Consumer: o.Consumer, Max: 1, AckDeadline: o.AckDeadline, Single: tx != nil}
	_, err := consume.check()
	if invalid := (*InvalidError)(nil); errors.As(err, &invalid) {
		p = append(p, invalid.Problems...)
	}
	if err := p.err(); err != nil {
		return nil, fmt.Errorf("receive from %q: %w", subscriptionID, err)
	}
	from := supplyOf(source)
	if o.Logger == nil {
		o.Logger = from.defaultLogger()
	}
	r := &receiver{
		from: from, hooks: from.seenBy(), tx: tx, id: subscriptionID, options: o, consume: consume,
		room: make(chan struct{}, 1), results: make(chan struct{}, 1), enough: make(chan struct{}, 1),
		running: map[*item]struct{}{}, nacks: map[nackKind][]Delivery{},
	}
	r.nonEmpty = sync.NewCond(&r.mu)
	for retry := retryFrom; ; retry = min(2*retry, retryUpTo) {
		sub, err := from.GetSubscription(ctx, subscriptionID)
		if err == nil {
			r.topic, r.attempts, r.deadline = sub.TopicID, sub.MaxDeliveryAttempts, sub.AckDeadline
			break
		}
		if fatal(err) || ctx.Err() != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		r.warn("subscription could not be read", err)
		if err := sleep(ctx, retry/2+rand.N(retry)); err != nil {
			return nil, fmt.Errorf("receive from %q: %w", subscriptionID, err)
		}
	}
	if o.AckDeadline != 0 {
		r.deadline = o.AckDeadline
	}
	r.consume.AckDeadline = r.deadline
	return r, nil
}

// fatal says that trying again will not help.
func fatal(err error) bool {
	for _, target := range []error{ErrNotFound, ErrInvalid, ErrSchemaOutdated, ErrBinaryOutdated, ErrCredentials, ErrNoTokens, ErrToken, ErrScope} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

func (r *receiver) warn(what string, err error) {
	r.options.Logger.LogAttrs(context.Background(), slog.LevelWarn, what+", it will be tried again",
		slog.String("subscription", r.id), slog.Any("error", err))
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (r *receiver) run(ctx context.Context) error {
	calls := context.WithoutCancel(ctx) // acks go on after ctx has ended
	handlers, cancelHandlers := context.WithCancelCause(calls)
	defer cancelHandlers(nil)
	r.handlers = handlers
	fetching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r.stop = stop
	claims, cancelClaims := context.WithCancel(byReceiver(calls))
	defer cancelClaims()
	sending, cancelSending := context.WithCancel(byReceiver(calls))
	defer cancelSending()

	for range r.options.Concurrency {
		r.workers.Go(r.work)
	}
	handled, done := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-handled:
			return
		case <-fetching.Done():
		}
		timer := time.NewTimer(r.options.ShutdownTimeout)
		defer timer.Stop()
		select {
		case <-handled:
		case <-timer.C:
			cancelClaims()
			cancelHandlers(ErrStopping)
		}
	})
	wg.Go(func() { r.keep(sending, handled) })
	var unsent int
	var sendErr error
	wg.Go(func() {
		defer close(done)
		unsent, sendErr = r.send(sending, handled)
	})

	err := r.fetch(fetching, claims)
	if err != nil {
		stop(err)
	}
	r.giveBackQueue()
	r.workers.Wait()
	close(handled)
	timer := time.AfterFunc(finalTimeout, cancelSending)
	defer timer.Stop()
	<-done
	wg.Wait()
	if err == nil && ctx.Err() == nil {
		err = context.Cause(fetching)
	}
	if unsent > 0 {
		err = errors.Join(err, fmt.Errorf("%d acks and nacks were not sent, these messages come again: %w", unsent, sendErr))
	}
	if err != nil {
		return fmt.Errorf("receive from %q: %w", r.id, err)
	}
	return nil
}

// fetch takes messages until ctx ends.
func (r *receiver) fetch(ctx, claims context.Context) error {
	taker := r.from.join(r.id)
	defer taker.leave()
	retry := retryFrom
	for ctx.Err() == nil {
		options := r.consume
		if options.Max = r.wanted(); options.Max == 0 {
			select {
			case <-r.room:
			case <-ctx.Done():
			}
			continue
		}
		msgs, since, err := taker.take(ctx, claims, options)
		switch {
		case errors.Is(err, ErrBusy):
			_ = sleep(ctx, busyPause/2+rand.N(busyPause))
			continue
		case err != nil && fatal(err):
			return err
		case err != nil:
			if ctx.Err() == nil {
				r.warn("messages could not be taken", err)
			}
			taker.rest(ctx, retry/2+rand.N(retry))
			retry = min(2*retry, retryUpTo)
			continue
		}
		retry = retryFrom
		if len(msgs) > 0 {
			r.add(msgs, since.Add(r.deadline))
		}
	}
	return nil
}

// wanted is how many messages to take now: for handlers that have nothing to do, and some ahead.
func (r *receiver) wanted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if elapsed := time.Since(r.ratedAt); elapsed >= rateWindow {
		r.rate = (r.rate + float64(r.finished)/elapsed.Seconds()) / 2
		r.finished, r.ratedAt = 0, time.Now()
	}
	ahead := int(min(math.Ceil(r.rate*aheadFor.Seconds()), float64(r.options.MaxMessages)))
	target := r.options.Concurrency - len(r.running) + ahead
	if len(r.queue) > target/2 || len(r.acks)+r.pending >= maxAckIDs {
		return 0
	}
	n := min(target-len(r.queue), maxConsume, r.options.MaxMessages-len(r.queue)-len(r.running))
	if r.average > 0 {
		n = min(n, (r.options.MaxBytes-r.bytes)/r.average)
	}
	n = min(n, max(2*r.lastTook, r.options.Concurrency)) // until it is known how large they are
	if n <= 0 && len(r.queue)+len(r.running) == 0 {
		n = 1 // larger than all that may be held
	}
	return max(n, 0)
}

// add puts messages into the queue.
func (r *receiver) add(msgs []Message, expires time.Time) {
	items := make([]item, len(msgs))
	size := 0
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range msgs {
		items[i].msg, items[i].expires = msgs[i], expires
		size += len(msgs[i].Payload)
		r.queue = append(r.queue, &items[i])
	}
	r.bytes += size
	r.average = max(size/len(msgs), 1)
	r.lastTook = len(msgs)
	if len(msgs) > 1 {
		r.nonEmpty.Broadcast()
	} else {
		r.nonEmpty.Signal()
	}
}

// giveBackQueue gives back what no handler has begun with, and lets workers end.
func (r *receiver) giveBackQueue() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = true
	for _, it := range r.queue {
		r.giveBack(it)
	}
	r.queue = nil
	r.nonEmpty.Broadcast()
}

func (r *receiver) giveBack(it *item) {
	r.bytes -= len(it.msg.Payload)
	r.nack(it, nackKind{NackOptions: NackOptions{Uncounted: true}})
}

func (r *receiver) nack(it *item, kind nackKind) {
	r.nacks[kind] = append(r.nacks[kind], it.msg.Delivery)
	r.pending++
	r.resulted(r.pending)
}

// resulted tells that there is something to send.
func (r *receiver) resulted(n int) {
	if r.oldest.IsZero() {
		r.oldest = time.Now()
		nudge(r.results)
	}
	if n >= gatherEnough {
		nudge(r.enough)
	}
}

// work is a goroutine that handles messages.
func (r *receiver) work() {
	for {
		it, ctx := r.next()
		if it == nil {
			return
		}
		r.handleOne(ctx, it)
	}
}

func (r *receiver) next() (*item, context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) == 0 {
		if r.stopping {
			return nil, nil
		}
		r.nonEmpty.Wait()
	}
	it := r.queue[0]
	r.queue[0] = nil
	r.queue = r.queue[1:]
	it.started = time.Now()
	ctx, cancel := context.WithCancelCause(r.handlers)
	it.cancel = cancel
	r.running[it] = struct{}{}
	nudge(r.room)
	return it, ctx
}

// errExited means that a handler ended its goroutine, as testing's FailNow does.
var errExited = errors.New("the handler called runtime.Goexit")

func (r *receiver) handleOne(ctx context.Context, it *item) {
	err := errExited
	var op *Operation
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
		outcome := r.settle(ctx, it, err)
		r.hooks.endHandling(ctx, op, outcome, err)
		if errors.Is(err, errExited) {
			r.workers.Go(r.work)
		}
	}()
	ctx, op = r.hooks.startHandling(ctx, r, it)
	err = r.handle(ctx, it)
}

// What ReceiveTx has to say instead of nil.
var (
	errCommitted = errors.New("acked and committed")
	errNotOurs   = errors.New("acked by somebody else, or with them")
	errNotBegun  = errors.New("no transaction")
)

// settle does what a handler's error says, and returns what that is.
func (r *receiver) settle(ctx context.Context, it *item, err error) (outcome Outcome) {
	stopped := errors.Is(context.Cause(ctx), ErrStopping) && (errors.Is(err, context.Canceled) || errors.Is(err, ErrStopping))
	it.cancel(nil)
	var snooze *snoozeError
	var permanent *permanentError
	r.mu.Lock()
	delete(r.running, it)
	r.finished++
	lost := it.lost
	nudge(r.room)
	switch {
	case err == nil: // if it is late: somebody has done the work
		outcome = OutcomeAcked
		r.bytes -= len(it.msg.Payload)
		r.acks = append(r.acks, it.msg.ID)
		r.resulted(len(r.acks))
	case errors.Is(err, errCommitted), errors.Is(err, errNotOurs), lost:
		if outcome = OutcomeLost; errors.Is(err, errCommitted) {
			outcome = OutcomeAcked
		}
		r.bytes -= len(it.msg.Payload)
	case stopped, errors.Is(err, errNotBegun):
		outcome = OutcomeReturned
		r.giveBack(it)
	case errors.As(err, &snooze):
		outcome = OutcomeSnoozed
		r.bytes -= len(it.msg.Payload)
		r.nack(it, nackKind{NackOptions: NackOptions{Uncounted: true, Delay: wholeSeconds(snooze.d)}})
	case errors.As(err, &permanent):
		outcome = OutcomeDeadLetter
		r.bytes -= len(it.msg.Payload)
		r.nack(it, nackKind{NackOptions{DeadLetter: true, Error: err.Error()}, true})
	default:
		last := it.msg.DeliveryAttempts >= r.attempts
		if outcome = OutcomeRetry; last {
			outcome = OutcomeDeadLetter
		}
		r.bytes -= len(it.msg.Payload)
		r.nack(it, nackKind{NackOptions{Error: err.Error()}, last})
	}
	r.mu.Unlock()
	if err != nil && snooze == nil && !stopped && !errors.Is(err, errCommitted) && !errors.Is(err, errNotOurs) && !errors.Is(err, errNotBegun) {
		r.options.Logger.LogAttrs(ctx, slog.LevelWarn, "handler failed", slog.String("subscription", r.id), slog.String("message", it.msg.ID.String()),
			slog.Int("attempt", it.msg.DeliveryAttempts), slog.Bool("permanent", permanent != nil), slog.Bool("lease_lost", lost), slog.Any("error", err))
	}
	return outcome
}

func wholeSeconds(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return min((d-1)/time.Second+1, maxDelaySeconds) * time.Second
}

// keep extends the ack deadlines of what handlers work on, gives back what has waited for one for too long, and cancels handlers
// that have lost their message. It goes on until all handlers have returned.
func (r *receiver) keep(ctx context.Context, handled <-chan struct{}) {
	ticker := time.NewTicker(min(max(r.deadline/8, 100*time.Millisecond), 5*time.Second))
	defer ticker.Stop()
	for {
		select {
		case <-handled:
			return
		case <-ticker.C:
		}
		extend := r.expiring(time.Now())
		if len(extend) == 0 {
			continue
		}
		if err := r.extend(ctx, extend); err != nil && !fatal(err) {
			r.warn("ack deadlines could not be extended", err)
		}
	}
}

// expiring looks after all that is held and returns what is to be extended.
func (r *receiver) expiring(now time.Time) (extend []*item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = slices.DeleteFunc(r.queue, func(it *item) bool {
		soon := it.expires.Sub(now) < r.deadline/3
		if soon {
			r.giveBack(it)
		}
		return soon
	})
	for it := range r.running {
		over := now.Sub(it.started) >= r.options.MaxHandling
		switch {
		case it.lost:
		case over && r.tx != nil, !now.Before(it.expires) && r.tx == nil: // it has a row locked, else
			it.lost = true
			it.cancel(ErrLeaseLost)
		case !over && r.tx == nil && it.expires.Sub(now) < r.deadline/2:
			extend = append(extend, it)
		}
	}
	return extend
}

// extend gives items another ack deadline. Those that do not get it are lost.
func (r *receiver) extend(ctx context.Context, items []*item) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	all := make([]Delivery, len(items))
	for i, it := range items {
		all[i] = it.msg.Delivery
	}
	began := time.Now()
	n, err := r.from.Extend(ctx, r.id, all, r.deadline)
	if err != nil {
		return err
	}
	if n < len(items) && len(items) > 1 { // which of them?
		for _, it := range items {
			if err := r.extend(ctx, []*item{it}); err != nil {
				return err
			}
		}
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, it := range items {
		if _, running := r.running[it]; !running {
			continue
		}
		if n < len(items) {
			it.lost = true
			it.cancel(ErrLeaseLost)
		} else {
			it.expires = began.Add(r.deadline)
		}
	}
	return nil
}
