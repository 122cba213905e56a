package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

// payloadBytes is the size of every message.
const payloadBytes = 200

const (
	retryPause  = 20 * time.Millisecond
	retryFor    = 2 * time.Minute // a call, where errors are outlived
	windowPause = 200 * time.Microsecond
)

// A publishing is what clients are to publish, and what they have published.
type publishing struct {
	clients  int
	batch    int           // messages of a call
	messages int64         // in all; 0: until duration is over
	duration time.Duration // of publishing
	rate     int           // messages a second of all clients; 0 is full speed
	copies   int64         // jobs of a message, one for each group, where the system does not fan out
	first    int64         // number of the first job
	retry    bool
	// window is how many deliveries to all groups may be on their way, those that delivered does not count yet; 0 is no limit.
	window    int64
	groups    int64
	delivered func() int64

	next atomic.Int64 // jobs whose publishing has begun
	done atomic.Int64 // jobs published

	mu      sync.Mutex // protects latency
	latency bench.Latencies
}

// called notes a call that published jobs.
func (p *publishing) called(jobs int64, took time.Duration) {
	p.done.Add(jobs)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency.Record(took)
}

// take gives the next call's numbers; n is 0 when all are taken.
func (p *publishing) take() (first int64, n int) {
	size := int64(p.batch) * p.copies
	if p.messages == 0 {
		return p.first + p.next.Add(size) - size, int(size)
	}
	for {
		begun := p.next.Load()
		size := min(size, p.messages*p.copies-begun)
		if size <= 0 {
			return 0, 0
		}
		if p.next.CompareAndSwap(begun, begun+size) {
			return p.first + begun, int(size)
		}
	}
}

// full says whether enough is on its way.
func (p *publishing) full() bool {
	return p.window > 0 && p.next.Load()*p.groups-p.delivered() >= p.window
}

// run publishes with send.
func (p *publishing) run(ctx context.Context, send func(ctx context.Context, client int, payloads [][]byte) error) error {
	supply, err := p.supply()
	if err != nil {
		return err
	}
	start := time.Now()
	end := start.Add(p.duration)
	var interval time.Duration
	if p.rate > 0 {
		interval = time.Duration(float64(p.batch*p.clients) / float64(p.rate) * float64(time.Second))
	}
	g, ctx := errgroup.WithContext(ctx)
	for client := range p.clients {
		g.Go(func() error {
			due := start.Add(interval * time.Duration(client) / time.Duration(p.clients)) // not all at once
			for {
				if wait := time.Until(due); interval > 0 && wait > 0 {
					if err := pause(ctx, wait); err != nil {
						return err
					}
				}
				for p.full() && !p.over(end) {
					if err := pause(ctx, windowPause); err != nil {
						return err
					}
				}
				if p.over(end) {
					return ctx.Err()
				}
				first, n := p.take()
				if n == 0 {
					return nil
				}
				sent := time.Now()
				if interval > 0 {
					sent = due // else a server that keeps its clients waiting would look fast
				}
				payloads := supply[client][:n]
				for i, payload := range payloads {
					bench.StampPayload(payload, first+int64(i), sent.UnixNano())
				}
				before := time.Now()
				if err := p.insist(ctx, func() error { return send(ctx, client, payloads) }); err != nil {
					return err
				}
				p.called(int64(n), time.Since(before))
				due = due.Add(interval)
			}
		})
	}
	return g.Wait()
}

func (p *publishing) over(end time.Time) bool { return p.messages == 0 && !time.Now().Before(end) }

// insist calls again what failed, with the same messages, where the server is expected to go away. What had been committed
// before the error is published twice then.
func (p *publishing) insist(ctx context.Context, call func() error) error {
	began := time.Now()
	for {
		err := call()
		if err == nil || !p.retry || time.Since(began) > retryFor || ctx.Err() != nil {
			return err
		}
		if pause(ctx, retryPause) != nil {
			return err
		}
	}
}

// supply makes one call's payloads for each client; numbers and times are written into them again and again.
func (p *publishing) supply() ([][][]byte, error) {
	all := make([][][]byte, p.clients)
	for client := range all {
		rng := rand.NewChaCha8([32]byte{1, byte(client), byte(client >> 8)})
		all[client] = make([][]byte, int64(p.batch)*p.copies)
		for i := range all[client] {
			var err error
			if all[client][i], err = bench.NewPayload(rng, payloadBytes); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}
