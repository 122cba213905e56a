package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

// received is what consumers got: how often each message came to each group, when, and how old it was. It is safe for
// concurrent use.
type received struct {
	start    time.Time
	distinct atomic.Int64 // deliveries of something for the first time

	mu       sync.Mutex // protects the rest
	groups   [][]uint8  // times a number came
	again    int64
	foreign  int64 // nothing that was published here
	err      error // the first message that could not be read
	latency  bench.Latencies
	span     time.Duration // of a step of series
	series   []int64
	first    time.Time
	last     time.Time
	quiet    time.Duration // the longest time without a message
	resumed  time.Time     // when a message came after since
	since    time.Time
	finished chan struct{} // closed when want have come
	want     int64
	known    bool // want is
}

// biggestNumber bounds what an audit has room for.
const biggestNumber = 1 << 28

func newReceived(groups int, span time.Duration) *received {
	return &received{start: time.Now(), groups: make([][]uint8, groups), latency: bench.NewLatencies(), span: span, finished: make(chan struct{})}
}

// begin starts the clock, for everything but the audit.
func (r *received) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.start = time.Now()
	r.first, r.last, r.quiet = time.Time{}, r.start, 0
	r.latency, r.series = bench.NewLatencies(), nil
}

// forget takes expect back.
func (r *received) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = false
	r.finished = make(chan struct{})
}

// all returns a channel that is closed when all that is expected has come.
func (r *received) all() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.finished
}

// expect says how many deliveries there are to be in all.
func (r *received) expect(deliveries int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.want, r.known = deliveries, true
	r.finish()
}

func (r *received) finish() {
	if r.known && r.distinct.Load() == r.want {
		select {
		case <-r.finished:
		default:
			close(r.finished)
		}
	}
}

// message notes a payload.
func (r *received) message(group int, payload []byte) {
	now := time.Now()
	number, err := member(payload, `"number":`)
	sent, sentErr := member(payload, `"sent":`)
	if err := errors.Join(err, sentErr); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.err == nil {
			r.err = err
		}
		return
	}
	r.note(group, number, now.Sub(time.Unix(0, sent)), now)
}

// note notes a message by its number and its age.
func (r *received) note(group int, number int64, age time.Duration, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if group >= len(r.groups) || number < 0 || number >= biggestNumber {
		r.foreign++
		return
	}
	if r.first.IsZero() {
		r.first = now
	}
	r.quiet = max(r.quiet, now.Sub(r.last))
	if now.After(r.last) {
		r.last = now
	}
	if !r.since.IsZero() && r.resumed.IsZero() && now.After(r.since) {
		r.resumed = now
	}
	times := r.groups[group]
	for int64(len(times)) <= number {
		times = append(times, make([]uint8, 1+len(times))...)
	}
	r.groups[group] = times
	if times[number] < 255 {
		times[number]++
	}
	if times[number] > 1 {
		r.again++
		return
	}
	r.distinct.Add(1)
	r.latency.Record(age)
	if step := int(now.Sub(r.start) / r.span); step >= 0 {
		for len(r.series) <= step {
			r.series = append(r.series, 0)
		}
		r.series[step]++
	}
	r.finish()
}

// watch asks for the first message after now.
func (r *received) watch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since, r.resumed = time.Now(), time.Time{}
}

// An Audit is what came of what was published.
type Audit struct {
	Published  int64 `json:"published"`  // jobs, or messages, for all groups together
	Missing    int64 `json:"missing"`    // not delivered when waiting ended
	Duplicates int64 `json:"duplicates"` // deliveries more than one
	Foreign    int64 `json:"foreign"`    // delivered and never published
}

// audit compares with the numbers [0, published).
func (r *received) audit(published int64) Audit {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := Audit{Published: published * int64(len(r.groups)), Duplicates: r.again, Foreign: r.foreign}
	for _, times := range r.groups {
		came := int64(0)
		for number, n := range times {
			switch {
			case n == 0:
			case int64(number) < published:
				came++
			default:
				a.Foreign++
			}
		}
		a.Missing += published - came
	}
	return a
}

// member reads 16 hexadecimal digits, the value of a member of a JSON object. Databases that parse JSON give it back with
// other spaces and in another order, so it is searched for.
func member(payload []byte, key string) (int64, error) {
	i := bytes.Index(payload, []byte(key))
	if i >= 0 {
		rest := bytes.TrimLeft(payload[i+len(key):], " ")
		if len(rest) > 17 && rest[0] == '"' && rest[17] == '"' {
			return strconv.ParseInt(string(rest[1:17]), 16, 64)
		}
	}
	return 0, fmt.Errorf("a message of %d bytes came without %s", len(payload), key)
}
