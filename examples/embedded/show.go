package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fastpubsub/fastpubsub"
)

// show takes two orders and handles them, with what can go wrong on the way.
func show(ctx context.Context, s *shop, w io.Writer) error {
	p := &protocol{ctx: ctx, shop: s, w: w}

	p.title("An order and its message are one transaction")
	err := s.place(ctx, order{Customer: "ann@example.com", Item: "mug", Pieces: 3})
	p.happens("ann orders 3 of the 5 mugs", err)
	p.rows("orders", 1)
	p.rows("emails_sent", 0)
	msgs := p.consumes("worker-1", 1)

	p.title("A rollback publishes nothing")
	err = s.place(ctx, order{Customer: "bob@example.com", Item: "mug", Pieces: 3})
	p.fails("bob orders 3 mugs; the message is published before the stock says no", err, isCheckViolation)
	p.rows("orders", 1)
	p.consumes("worker-1", 0)
	if p.err != nil {
		return p.err
	}

	msg := msgs[0]
	p.title("A crash loses nothing and repeats nothing")
	for _, when := range []stage{afterWrite, afterAck} {
		err = s.handle(ctx, msg, p.crash(when))
		p.fails(fmt.Sprintf("worker-1 handles the message and loses its connection %s", when), err, isConnectionLost)
		p.rows("emails_sent", 0)
		p.consumes("worker-2", 0) // worker-1 still has it
	}
	err = s.handle(ctx, msg, nil)
	p.happens("worker-1 handles the message again, in a new transaction", err)
	p.rows("emails_sent", 1)

	p.title("Two workers with the same message have one effect")
	err = s.handle(ctx, msg, nil)
	p.fails("worker-2 handles it too, as after a redelivery", err, func(err error) bool { return errors.Is(err, errNotOurs) })
	p.rows("emails_sent", 1)
	p.consumes("worker-1", 0)

	if p.err == nil {
		fmt.Fprintln(w, "\nAll of this was checked: one order, one message, one mail.")
	}
	return p.err
}

// A protocol writes down what happens and checks it. After the first check that fails it does nothing more.
type protocol struct {
	ctx  context.Context
	shop *shop
	w    io.Writer
	err  error
}

func (p *protocol) title(text string) {
	if p.err == nil {
		fmt.Fprintf(p.w, "\n%s\n", text)
	}
}

// check writes a line and fails unless ok.
func (p *protocol) check(ok bool, format string, args ...any) {
	if p.err != nil {
		return
	}
	line := fmt.Sprintf(format, args...)
	if !ok {
		p.err = fmt.Errorf("not as it should be: %s", line)
		return
	}
	fmt.Fprintf(p.w, "  %s\n", line)
}

func (p *protocol) happens(what string, err error) {
	if err != nil {
		p.check(false, "%s: %v", what, err)
		return
	}
	p.check(true, "%s: committed", what)
}

// fails is happens for what must fail, with an error of a certain kind.
func (p *protocol) fails(what string, err error, kind func(error) bool) {
	if err == nil {
		p.check(false, "%s: committed", what)
		return
	}
	p.check(kind(err), "%s: rolled back (%s)", what, reason(err))
}

func (p *protocol) rows(table string, want int) {
	if p.err != nil {
		return
	}
	var got int
	err := p.shop.pool.QueryRow(p.ctx, "SELECT count(*) FROM "+table).Scan(&got)
	if err != nil {
		p.err = err
		return
	}
	p.check(got == want, "    rows in %s: %d", table, got)
}

func (p *protocol) consumes(worker string, want int) []fastpubsub.Message {
	if p.err != nil {
		return nil
	}
	msgs, err := p.shop.consume(p.ctx, worker)
	if err != nil {
		p.err = err
		return nil
	}
	p.check(len(msgs) == want, "    messages for %s: %d", worker, len(msgs))
	for _, msg := range msgs {
		p.check(true, "      %s", msg.Payload)
	}
	return msgs
}

// crash makes the server end the connection of a transaction at a stage, as it does when the worker's process dies.
func (p *protocol) crash(when stage) func(stage, pgx.Tx) {
	return func(now stage, tx pgx.Tx) {
		if now != when {
			return
		}
		// From another connection. It returns once the backend is gone, or after 10 seconds.
		var gone bool
		err := p.shop.pool.QueryRow(p.ctx, `SELECT pg_terminate_backend($1, 10000)`, tx.Conn().PgConn().PID()).Scan(&gone)
		if err == nil && !gone {
			err = errors.New("the backend did not end")
		}
		if p.err == nil {
			p.err = err
		}
	}
}

func isCheckViolation(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.ConstraintName == "enough_in_stock"
}

// isConnectionLost is about the first statement after the end of the connection: it gets the server's last words, or
// finds the socket closed.
func isConnectionLost(err error) bool {
	const adminShutdown = "57P01"
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code == adminShutdown
	}
	_, isNet := errors.AsType[*net.OpError](err)
	return isNet || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}

// reason is an error in the words of the server, where it has some.
func reason(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Message
	}
	return err.Error()
}
