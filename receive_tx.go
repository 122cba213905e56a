package fastpubsub

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"
)

// ReceiveTx is Receive with a transaction for each message, that of [pgx.TxOptions]{}. It begins with the ack, then the handler
// writes, and both are committed, or neither: what handlers write with tx happens exactly once for each message, whatever dies
// at whatever moment. A second consumer can not commit the same message, and nobody waits for another message's handler. When a
// handler returns an error, or its connection breaks, nothing that it wrote remains.
//
// While a handler works its message is out of reach for others, however long the ack deadline: until MaxHandling is over, or the
// connection is gone. A handler must not use the pool for what belongs to the message, and whatever connections it
// takes besides tx must be left over: the pool needs more than Concurrency.
func (b *Broker) ReceiveTx(ctx context.Context, subscriptionID string, handle TxHandler, options ReceiveOptions) error {
	r, err := newReceiver(ctx, b, b, subscriptionID, options, handle == nil)
	if err != nil {
		return err
	}
	r.handle = func(ctx context.Context, it *item) error { return r.inTx(ctx, it, handle) }
	return r.run(ctx)
}

// inTx handles a message in a transaction that begins with its ack.
func (r *receiver) inTx(ctx context.Context, it *item, handle TxHandler) (err error) {
	tx, err := r.begin(ctx, it)
	if err != nil {
		return err
	}
	announced := &announcedTx{Tx: tx, b: r.tx}
	defer func() { // after a panic, too
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), notifyTimeout)
		defer cancel()
		_ = tx.Rollback(ctx) // pgx.ErrTxClosed after a commit; what else goes wrong closes the connection
	}()
	if err := handle(ctx, announced, it.msg); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// Whether a commit that is cut off has happened nobody knows, and the nack that follows does nothing if it has.
	commit, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := tx.Commit(commit); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	announced.committed()
	return errCommitted
}

// begin begins a transaction with the ack, which locks the message until the end.
func (r *receiver) begin(ctx context.Context, it *item) (pgx.Tx, error) {
	ack, op := r.hooks.start(ctx, Operation{Kind: OpAck, SubscriptionID: r.id, InTx: true, Deliveries: deliveriesOf([]ID{it.msg.ID})})
	tx, n, err := r.tx.store.BeginAck(ack, r.tx.pool, r.id, ranges([]Delivery{it.msg.Delivery}))
	r.hooks.end(ack, op, n, err)
	if err == nil && n == 1 {
		return tx, nil
	}
	rollbackErr := tx.Rollback(context.WithoutCancel(ctx)) // lets go of the connection, whatever went wrong
	if err == nil && rollbackErr == nil {
		return nil, errNotOurs
	}
	if ctx.Err() == nil {
		r.warn("a transaction could not be begun", cmp.Or(err, rollbackErr))
		_ = sleep(ctx, retryFrom+rand.N(retryUpTo/5))
	}
	return nil, errNotBegun
}
