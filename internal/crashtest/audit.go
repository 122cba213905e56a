package crashtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// Findings are what an audit found.
type Findings struct {
	Lost  int   // messages that nobody acked, and that are not there any more
	Twice int   // ids that two messages have
	Err   error // all that is wrong, these included
}

// Audit ends the work on the subscription of a ledger, and accounts for each of its messages, in whatever order it happened
// what callers did at the same time. Nobody may use the subscription any more.
func Audit(t testing.TB, b *fastpubsub.Broker, clock *storetest.Clock, entries []Entry) Findings {
	t.Helper()
	var last Memory
	before, err := settle(t.Context(), b, clock, last.Add)
	if err != nil {
		t.Fatal(err)
	}
	after, err := b.Metrics(t.Context(), Subscription)
	if err != nil {
		t.Fatal(err)
	}
	a := auditor{byID: map[fastpubsub.ID]*fate{}, byN: map[int]*fate{}, begun: map[int]bool{}, open: map[string]opened{}, counted: map[Call]int{}}
	a.follow(entries)
	for _, o := range a.open {
		a.cutOff(o)
	}
	clear(a.open)
	told := a.acked
	a.follow(last.entries)
	if err := a.readDeadLetters(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	dead, lost := a.account()
	all := int64(len(a.byID))
	if sum := before.Available + before.Delivered + before.Acked + before.DeadLetters; sum != all {
		a.find("metrics count %d of %d messages: %+v", sum, all, before)
	}
	if want := (fastpubsub.Metrics{Acked: all - int64(dead), DeadLetters: int64(dead)}); after != want {
		a.find("metrics are %+v in the end, want %+v", after, want)
	}
	if n := int(after.Acked); n < a.acked || n > a.acked+a.unsure {
		a.find("%d messages are acked, but callers were told %d, and for %d not told", n, a.acked, a.unsure)
	}
	t.Logf("%d messages, %d dead; by call: %v, of them %d acked in the end; %d calls were cut off, with acks of %d messages; before the end: %+v",
		all, dead, a.counted, a.acked-told, a.cut, a.unsure, before)
	return Findings{lost, a.twice, a.err()}
}

// account returns how many messages are dead letters, and how many are lost.
func (a *auditor) account() (dead, lost int) {
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
			lost++
		}
	}
	if lost > 0 {
		a.find("of %d messages %d are lost", len(a.byID), lost)
	}
	return dead, lost
}

// settle takes what waits in the subscription out of it, and acks it; the clock moves on until nothing is left. Nobody
// else may be working. It returns what metrics said before that.
func settle(ctx context.Context, b *fastpubsub.Broker, clock *storetest.Clock, r Recorder) (fastpubsub.Metrics, error) {
	before, err := b.Metrics(ctx, Subscription)
	if err != nil {
		return before, err
	}
	for range 20 {
		for {
			msgs, err := r.Consume(ctx, b, fastpubsub.ConsumeOptions{Consumer: "auditor", Max: 100})
			if err != nil {
				return before, err
			}
			if len(msgs) == 0 {
				break
			}
			if err := r.Ack(ctx, b, "auditor", msgs); err != nil {
				return before, err
			}
		}
		m, err := b.Metrics(ctx, Subscription)
		if err != nil || m.Available+m.Delivered == 0 {
			return before, err
		}
		if err := clock.Move(ctx, time.Hour); err != nil {
			return before, err
		}
	}
	return before, errors.New("messages wait that nobody gets")
}

// fate is what became of a message.
type fate struct {
	Message
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
	at      int // the number of the entry
	byID    map[fastpubsub.ID]*fate
	byN     map[int]*fate
	begun   map[int]bool // by N: somebody began to publish it
	open    map[string]opened
	acked   int // by calls that returned
	unsure  int // how many more may have been acked, by calls that were cut off
	cut     int // calls that were cut off
	twice   int // ids of two messages
	wrong   []error
	counted map[Call]int // messages by call
}

type opened struct {
	Entry
	at int
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

func (a *auditor) follow(entries []Entry) {
	for _, e := range entries {
		a.at++
		if e.Call == Crash {
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

func (a *auditor) begin(e Entry) {
	for _, m := range e.Messages {
		switch e.Call {
		case Publish:
			a.begun[m.N] = true
		case GiveBack:
			a.fate(m).givenBack++
		}
	}
}

func (a *auditor) cutOff(o opened) {
	a.cut++
	if o.Call == Ack {
		for _, m := range o.Messages {
			a.fate(m).unsure = true
		}
		a.unsure += len(o.Messages)
	}
}

// fate returns what is known about a message: its id and what was published belong together for ever.
func (a *auditor) fate(m Message) *fate {
	f := a.byID[m.ID]
	if f == nil {
		f = &fate{Message: Message{N: m.N, ID: m.ID}}
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

func (a *auditor) end(e Entry, begun int) {
	if e.Count < 0 || e.Count > len(e.Messages) {
		a.find("%s of %d messages returned %d", e.Call, len(e.Messages), e.Count)
	}
	all := e.Count == len(e.Messages)
	if e.Call == Ack {
		a.acked += e.Count
	}
	for _, m := range e.Messages {
		f := a.fate(m)
		switch e.Call {
		case Publish:
			if f.published {
				a.find("%v was published twice", m.ID)
			}
			f.published = true
		case Consume:
			a.handed(f, m.Attempts, begun)
		case Ack:
			if all && f.ackedAt > 0 {
				a.find("%v was acked by two calls", m.ID)
			}
			if all {
				f.ackedAt = a.at
			} else if e.Count > 0 {
				f.unsure = true
			}
		case Nack:
			if all && m.Attempts == Attempts {
				f.deadAt = a.at
			}
		}
	}
}

// handed is a delivery by a call that began with the entry begun.
func (a *auditor) handed(f *fate, attempts, begun int) {
	if attempts < 1 || attempts > Attempts {
		a.find("%v was delivered as attempt %d of %d", f.ID, attempts, Attempts)
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

func (a *auditor) readDeadLetters(ctx context.Context, b *fastpubsub.Broker) error {
	const page = 100
	for offset := 0; ; {
		letters, err := b.DeadLetters(ctx, Subscription, fastpubsub.ListOptions{Offset: offset, Limit: page})
		if err != nil {
			return err
		}
		for _, letter := range letters {
			f := a.fate(Received(letter.ID, letter.Payload, letter.DeliveryAttempts))
			if f.dead {
				a.find("%v is listed twice", f.ID)
			}
			f.dead = true
			if letter.DeliveryAttempts != Attempts {
				a.find("%v is dead after %d of %d attempts", f.ID, letter.DeliveryAttempts, Attempts)
			}
		}
		if len(letters) == 0 {
			return nil
		}
		offset += len(letters)
	}
}
