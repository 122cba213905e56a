package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A system is what is compared.
type system struct {
	name     string
	version  string
	contract contract
	floor    bool // it can be published to, and that is all
	again    bool // another way to consume from the system before: what concerns publishing alone is not measured again
	fanOut   bool // what is published once reaches every group; else a job is published for each of them
	peer     bool
	// missing says why it cannot be measured here; empty if it can.
	missing func() string
	open    func(ctx context.Context, o opening) (session, error)
}

// A contract says what the figures of a system are of.
type contract struct {
	Publish    string `json:"publish"`
	Consume    string `json:"consume"`
	Ack        string `json:"ack"`
	Durability string `json:"durability"`
}

// An opening is what a system needs to be set up in an empty database.
type opening struct {
	url     string
	clients int  // that publish
	groups  int  // of consumers, each of which gets every message
	consume bool // there will be consumers
	retry   bool // the server goes away meanwhile: errors are to be outlived
}

// sameDurability is said of all, since none lets go of it by default.
const sameDurability = "a publish that has returned is on disk: the server's synchronous_commit=on holds for every statement"

// A session is a system that is ready in a database of its own.
type session interface {
	// publish publishes what p says, by p.clients clients at once, and returns when that is over.
	publish(ctx context.Context, p *publishing) error
	// consume tells got of each message that was handled, until ctx ends. It returns when what was handled is acked.
	consume(ctx context.Context, got *received) error
	// stored returns how many messages lie there to be consumed.
	stored(ctx context.Context) (int64, error)
	// cpu returns what processes beside this one have used for it.
	cpu() time.Duration
	close() error
}

// goSession is what sessions in this process have in common.
type goSession struct {
	pool *pgxpool.Pool
	// send publishes payloads, which are its own until it returns, as one of the clients.
	send func(ctx context.Context, client int, payloads [][]byte) error
}

// newPool returns a pool of at most size connections.
func newPool(ctx context.Context, url string, size int) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = int32(size)
	return pgxpool.NewWithConfig(ctx, config)
}

func (s *goSession) publish(ctx context.Context, p *publishing) error { return p.run(ctx, s.send) }

func (s *goSession) cpu() time.Duration { return 0 }

func (s *goSession) close() error {
	s.pool.Close()
	return nil
}

func (s *goSession) count(ctx context.Context, sql string) (n int64, err error) {
	rows, _ := s.pool.Query(ctx, sql) // CollectExactlyOneRow reports Query's error
	return pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
}

// texts converts payloads for drivers that take text.
func texts(payloads [][]byte) []string {
	all := make([]string, len(payloads))
	for i, p := range payloads {
		all[i] = string(p)
	}
	return all
}

// pause waits for d, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
