package fastpubsub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// An entry of a ledger is the begin of a call, or its end as the caller was told. What happened in a call that never ends
// is not known: it was cut off.
type entry struct {
	Caller string // makes one call at a time
	Call   string // one of those below
	Ended  bool
	// Messages are those that the call is about. Only the end of publish has their ids, and only the end of consume
	// has any.
	Messages []told `json:",omitempty"`
	Count    int    `json:",omitempty"` // what the call returned
}

const (
	callPublish  = "publish"
	callConsume  = "consume"
	callAck      = "ack"
	callNack     = "nack"
	callExtend   = "extend"
	callGiveBack = "give back"
	callCrash    = "crash" // of the database, when all calls have ended or were cut off
)

// told is a message as a caller knows it.
type told struct {
	N        int // what its payload has
	ID       fastpubsub.ID
	Attempts int `json:",omitempty"`
}

// A recorder adds an entry to a ledger. What was added before comes first there, whoever added it.
type recorder func(entry) error

// memory is the ledger of one process.
type memory struct {
	mu      sync.Mutex // protects entries
	entries []entry
}

func (m *memory) add(e entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = append(m.entries, e)
	return nil
}

// fileRecorder adds to a ledger that processes share. A line that was cut off when its writer was killed stays alone.
func fileRecorder(f *os.File) recorder {
	return func(e entry) error {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = f.Write(fmt.Appendf(nil, "\n%s\n", line))
		return err
	}
}

// call does what a caller does, and says so before and after.
func (r recorder) call(caller, call string, msgs []told, do func() ([]told, int, error)) error {
	if err := r(entry{Caller: caller, Call: call, Messages: msgs}); err != nil {
		return err
	}
	msgs, n, err := do()
	if err != nil {
		return err
	}
	return r(entry{Caller: caller, Call: call, Ended: true, Messages: msgs, Count: n})
}

// publish publishes {"n": from} and so on.
func (r recorder) publish(ctx context.Context, b *fastpubsub.Broker, caller string, from, n int) error {
	msgs := make([]told, n)
	for i := range msgs {
		msgs[i].N = from + i
	}
	return r.call(caller, callPublish, slices.Clone(msgs), func() ([]told, int, error) {
		ids, err := b.Publish(ctx, "t", numbered(from, n)...)
		for i, id := range ids {
			msgs[i].ID = id
		}
		return msgs, len(ids), err
	})
}

func (r recorder) consume(ctx context.Context, b *fastpubsub.Broker, options fastpubsub.ConsumeOptions) (msgs []told, err error) {
	err = r.call(options.Consumer, callConsume, nil, func() ([]told, int, error) {
		got, err := b.Consume(ctx, "s", options)
		if err != nil {
			return nil, 0, err
		}
		msgs = allTold(got)
		return msgs, len(msgs), nil
	})
	return msgs, err
}

func (r recorder) ack(ctx context.Context, b *fastpubsub.Broker, caller string, msgs []told) error {
	return r.call(caller, callAck, msgs, func() ([]told, int, error) {
		ids := make([]fastpubsub.ID, len(msgs))
		for i, m := range msgs {
			ids[i] = m.ID
		}
		n, err := b.Ack(ctx, "s", ids)
		return msgs, n, err
	})
}

// allTold reads the numbers of messages. A payload that is not as it was published has -1, which never was.
func allTold(msgs []fastpubsub.Message) []told {
	all := make([]told, len(msgs))
	for i, m := range msgs {
		var payload struct{ N int }
		err := json.Unmarshal(m.Payload, &payload)
		if want := string(numbered(payload.N, 1)[0].Payload); err != nil || string(m.Payload) != want {
			payload.N = -1
		}
		all[i] = told{payload.N, m.ID, m.DeliveryAttempts}
	}
	return all
}

// fate is what became of a message.
type fate struct {
	told
	published bool // its publisher was told the id
	unsure    bool // an ack was cut off, or counted a part of its messages
	dead      bool // it is a dead letter
	ackedAt   int  // the entry by which it is known to be acked, 0 for none
	deadAt    int  // the entry by which it is known to be dead
	givenBack int  // how often that was at least begun
	seen      []handing
}

// A handing is a delivery: the number of its entry, and of the attempt.
type handing struct{ at, attempts int }

// An auditor follows a ledger and finds what breaks the promises: in whatever order it happened what callers did at the
// same time.
type auditor struct {
	limit   int // delivery attempts
	at      int // the number of the entry
	byID    map[fastpubsub.ID]*fate
	byN     map[int]*fate
	begun   map[int]bool // by N: somebody began to publish it
	open    map[string]opened
	acked   int // by calls that returned
	unsure  int // how many more may have been acked, by calls that were cut off
	cut     int // calls that were cut off
	lost    int // messages
	twice   int // ids of two messages
	wrong   []error
	counted map[string]int // messages by call
}

type opened struct {
	entry
	at int
}

func newAuditor(limit int) *auditor {
	return &auditor{
		limit: limit, byID: map[fastpubsub.ID]*fate{}, byN: map[int]*fate{}, begun: map[int]bool{},
		open: map[string]opened{}, counted: map[string]int{},
	}
}

func (a *auditor) find(format string, args ...any) {
	a.wrong = append(a.wrong, fmt.Errorf(format, args...))
}

// err is what was found.
func (a *auditor) err() error {
	if n := len(a.wrong); n > 10 {
		return fmt.Errorf("%w\nand %d more", errors.Join(a.wrong[:10]...), n-10)
	}
	return errors.Join(a.wrong...)
}

func (a *auditor) follow(entries []entry) {
	for _, e := range entries {
		a.at++
		if e.Call == callCrash {
			for _, f := range a.byID {
				f.seen = nil // deliveries, and their attempts, may be forgotten
			}
			continue
		}
		begin, ok := a.open[e.Caller]
		delete(a.open, e.Caller)
		switch {
		case !e.Ended:
			if ok {
				a.cutOff(begin)
			}
			a.begin(e)
			a.open[e.Caller] = opened{e, a.at}
		case !ok || begin.Call != e.Call:
			a.find("%s: %s ends without a begin", e.Caller, e.Call)
		default:
			a.counted[e.Call] += e.Count
			a.end(e, begin.at)
		}
	}
}

func (a *auditor) begin(e entry) {
	for _, m := range e.Messages {
		switch e.Call {
		case callPublish:
			a.begun[m.N] = true
		case callGiveBack:
			a.fate(m).givenBack++
		}
	}
}

func (a *auditor) cutOff(o opened) {
	a.cut++
	if o.Call == callAck {
		for _, m := range o.Messages {
			a.fate(m).unsure = true
		}
		a.unsure += len(o.Messages)
	}
}

// fate returns what is known about a message: its id and what was published belong together for ever.
func (a *auditor) fate(m told) *fate {
	f := a.byID[m.ID]
	if f == nil {
		f = &fate{told: told{N: m.N, ID: m.ID}}
		a.byID[m.ID] = f
		if other := a.byN[m.N]; other != nil {
			a.find("message %d has two ids, %v and %v", m.N, other.ID, m.ID)
		}
		a.byN[m.N] = f
		if !a.begun[m.N] {
			a.find("message %d, %v, was never published", m.N, m.ID)
		}
	}
	if f.N != m.N {
		a.twice++
		a.find("%v is the id of two messages, %d and %d", m.ID, f.N, m.N)
	}
	return f
}

func (a *auditor) end(e entry, begun int) {
	if e.Count < 0 || e.Count > len(e.Messages) {
		a.find("%s of %d messages returned %d", e.Call, len(e.Messages), e.Count)
	}
	all := e.Count == len(e.Messages)
	if e.Call == callAck {
		a.acked += e.Count
	}
	for _, m := range e.Messages {
		f := a.fate(m)
		switch e.Call {
		case callPublish:
			if f.published {
				a.find("%v was published twice", m.ID)
			}
			f.published = true
		case callConsume:
			a.handed(f, m.Attempts, begun)
		case callAck:
			if all && f.ackedAt > 0 {
				a.find("%v was acked by two calls", m.ID)
			}
			if all {
				f.ackedAt = a.at
			} else if e.Count > 0 {
				f.unsure = true
			}
		case callNack:
			if all && m.Attempts == a.limit {
				f.deadAt = a.at
			}
		}
	}
}

// handed is a delivery by a call that began with the entry begun.
func (a *auditor) handed(f *fate, attempts, begun int) {
	if attempts < 1 || attempts > a.limit {
		a.find("%v was delivered as attempt %d of %d", f.ID, attempts, a.limit)
	}
	if f.ackedAt > 0 && f.ackedAt < begun {
		a.find("%v was delivered again after it had been acked", f.ID)
	}
	if f.deadAt > 0 && f.deadAt < begun {
		a.find("%v was delivered again after its last attempt had failed", f.ID)
	}
	for _, h := range f.seen {
		if h.at < begun && attempts <= h.attempts-f.givenBack {
			a.find("%v was delivered as attempt %d after attempt %d, and given back %d times", f.ID, attempts, h.attempts, f.givenBack)
		}
	}
	f.seen = append(f.seen, handing{a.at, attempts})
}

// settle takes what waits in the subscription out of it, and acks it; the clock moves on until nothing is left. Nobody
// else may be working. It returns what metrics said before that.
func settle(t *testing.T, b *fastpubsub.Broker, clock *storetest.Clock, r recorder) (fastpubsub.Metrics, error) {
	t.Helper()
	before, err := b.Metrics(t.Context(), "s")
	if err != nil {
		return before, err
	}
	for range 20 {
		for {
			msgs, err := r.consume(t.Context(), b, fastpubsub.ConsumeOptions{Consumer: "auditor", Max: 100})
			if err != nil {
				return before, err
			}
			if len(msgs) == 0 {
				break
			}
			if err := r.ack(t.Context(), b, "auditor", msgs); err != nil {
				return before, err
			}
		}
		m, err := b.Metrics(t.Context(), "s")
		if err != nil || m.Available+m.Delivered == 0 {
			return before, err
		}
		if err := clock.Move(t.Context(), time.Hour); err != nil {
			return before, err
		}
	}
	return before, errors.New("messages wait that nobody gets")
}

// audit ends the work on a subscription that nobody else uses any more, and accounts for each message of the ledger: err
// says what is wrong. The error of audit itself is that it was not possible.
func (a *auditor) audit(t *testing.T, b *fastpubsub.Broker, clock *storetest.Clock, entries []entry) error {
	t.Helper()
	var last memory
	before, err := settle(t, b, clock, last.add)
	if err != nil {
		return err
	}
	a.follow(entries)
	for _, o := range a.open {
		a.cutOff(o)
	}
	clear(a.open)
	a.follow(last.entries)
	after, err := b.Metrics(t.Context(), "s")
	if err != nil {
		return err
	}
	if err := a.readDeadLetters(t.Context(), b); err != nil {
		return err
	}
	dead := int64(0)
	for _, f := range a.byID {
		switch {
		case f.dead:
			dead++
			if f.ackedAt > 0 {
				a.find("%v was acked and is dead", f.ID)
			}
		case f.deadAt > 0:
			a.find("%v is not dead, though its last attempt failed", f.ID)
		case f.ackedAt == 0 && !f.unsure:
			a.lost++
		}
	}
	if a.lost > 0 {
		a.find("of %d messages %d are lost", len(a.byID), a.lost)
	}

	all := int64(len(a.byID))
	if sum := before.Available + before.Delivered + before.Acked + before.DeadLetters; sum != all {
		a.find("metrics count %d of %d messages: %+v", sum, all, before)
	}
	if want := (fastpubsub.Metrics{Acked: all - dead, DeadLetters: dead}); after != want {
		a.find("metrics are %+v in the end, want %+v", after, want)
	}
	if n := int(after.Acked); n < a.acked || n > a.acked+a.unsure {
		a.find("%d messages are acked, but callers were told %d, and for %d not told", n, a.acked, a.unsure)
	}
	t.Logf("%d messages, %d dead; by call: %v, of them %d acked in the end; %d calls were cut off, with acks of %d messages; before the end: %+v",
		all, dead, a.counted, last.acked(), a.cut, a.unsure, before)
	return nil
}

func (m *memory) acked() (n int) {
	for _, e := range m.entries {
		if e.Call == callAck && e.Ended {
			n += e.Count
		}
	}
	return n
}

func (a *auditor) readDeadLetters(ctx context.Context, b *fastpubsub.Broker) error {
	const page = 100
	for offset := 0; ; offset += page {
		letters, err := b.DeadLetters(ctx, "s", fastpubsub.ListOptions{Offset: offset, Limit: page})
		if err != nil {
			return err
		}
		for _, letter := range letters {
			f := a.fate(allTold([]fastpubsub.Message{letter.Message})[0])
			if f.dead {
				a.find("%v is listed twice", f.ID)
			}
			f.dead = true
			if letter.DeliveryAttempts != a.limit {
				a.find("%v is dead after %d of %d attempts", f.ID, letter.DeliveryAttempts, a.limit)
			}
		}
		if len(letters) < page {
			return nil
		}
	}
}
