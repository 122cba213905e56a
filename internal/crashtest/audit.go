package crashtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// Findings are what an audit of a test found.
type Findings struct {
	Lost  int   // messages that nobody acked, and that are not there any more
	Twice int   // ids that two messages have
	Err   error // all that is wrong, these included
}

// Audit ends the work on the subscription of a test's ledger, and accounts for each of its messages. Nobody may use the
// subscription any more.
func Audit(t testing.TB, b *fastpubsub.Broker, clock *storetest.Clock, entries []Entry) Findings {
	t.Helper()
	a := NewAuditor()
	a.Follow(Entry{Call: Subscribe, Subscription: Subscription, Made: &Made{Topic: Topic, Attempts: Attempts}})
	a.Follow(Entry{Call: Subscribe, Subscription: Subscription, Ended: true})
	for _, e := range entries {
		a.Follow(e)
	}
	a.CutOff()
	var last Memory
	rest, err := Settle(t.Context(), Settlement{Broker: b, Subscription: Subscription, Move: clock.Move, Record: last.Add})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range last.Entries() {
		a.Follow(e)
	}
	all, dead := a.Account(Subscription, rest)
	t.Logf("%d messages, %d dead; by call: %v; %d calls were cut off; before the end: %+v", all, dead, a.Counted, a.Cut, rest.Before)
	return Findings{a.lost, a.twice, a.Err()}
}

// A Violation is a promise that was broken.
type Violation struct {
	Subscription string // may be empty
	N            int    // the message's number, 0 for none
	Text         string
}

func (v Violation) String() string {
	switch {
	case v.N == 0 && v.Subscription == "":
		return v.Text
	case v.N == 0:
		return v.Subscription + ": " + v.Text
	case v.Subscription == "":
		return fmt.Sprintf("message %d %s", v.N, v.Text)
	}
	return fmt.Sprintf("%s: message %d %s", v.Subscription, v.N, v.Text)
}

// An Auditor follows a ledger and finds what breaks the promises, in whatever order it happened what callers did at the same
// time: one call came before another only if it had ended when that began. [Auditor.Account] says what is left over in the
// end.
type Auditor struct {
	Counted map[Call]int // messages by call that ended
	Cut     int          // calls that were cut off
	Undone  int          // messages of publishes that were rolled back
	Unsure  int          // messages of publishes that were cut off

	at        int // the number of the entry
	messages  pages[message]
	byID      map[fastpubsub.ID]int
	books     map[string]*book
	open      map[string]opened
	cutOff    [][]int // the messages of each publish that was cut off
	forgotten int     // a claim that began before this entry may have been forgotten by a crash
	lost      int
	twice     int

	violations []Violation
	more       int // violations that are not kept
}

// NewAuditor returns an auditor of an empty ledger.
func NewAuditor() *Auditor {
	return &Auditor{Counted: map[Call]int{}, byID: map[fastpubsub.ID]int{}, books: map[string]*book{}, open: map[string]opened{}}
}

// message is what is known about a message in whatever subscription.
type message struct {
	id    fastpubsub.ID
	topic string
	begun int // the entry with which its publish began, 0 if it never did
	ended int // and ended
	state publishState
}

type publishState uint8

const (
	publishing publishState = iota
	committed
	rolledBack
	cutOff // nobody knows
)

// A book is about a subscription.
type book struct {
	Made
	name    string
	began   int // the entry with which its creation began
	created int // and ended; later than all others while it has not
	deleted int // with which its deletion ended, 0 for never

	fates   pages[fate]
	acked   int // by calls that returned
	unsure  int // how many more may have been acked, by calls that were cut off
	purged  int
	unclear int // how many more may have been purged
}

// fate is what became of a message in a subscription.
type fate struct {
	seen      []handing
	ackedAt   int // the entry by which it is known to be acked, 0 for none
	deadAt    int // the entry by which it is known to be dead
	renewedAt int // the entry by which its attempts had begun anew; later than all others while that is not known
	givenBack int // how often that was at least begun
	present   bool
	unsure    bool // an ack was cut off, or counted a part of its messages
	dead      bool // it is a dead letter in the end
	buried    bool // a call at least began to make it one, whatever its attempts
	maybe     bool // a purge was cut off
	purgedAt  int  // the entry by which it is known to be purged
	effects   int
}

// A handing is a delivery: the entries with which its call began and ended, and the number of the attempt.
type handing struct{ begun, ended, attempts int }

const never = math.MaxInt

type opened struct {
	Entry
	at   int
	book *book
}

const maxViolations = 1000

func (a *Auditor) find(b *book, n int, format string, args ...any) {
	if len(a.violations) == maxViolations {
		a.more++
		return
	}
	v := Violation{N: n, Text: fmt.Sprintf(format, args...)}
	if b != nil {
		v.Subscription = b.name
	}
	a.violations = append(a.violations, v)
}

// Violations returns what was found so far, and how many more there were than are kept.
func (a *Auditor) Violations() (kept []Violation, more int) { return a.violations, a.more }

// Err is what was found.
func (a *Auditor) Err() error {
	var errs []error
	for _, v := range a.violations[:min(len(a.violations), 10)] {
		errs = append(errs, errors.New(v.String()))
	}
	if n := len(a.violations) - len(errs) + a.more; n > 0 {
		errs = append(errs, fmt.Errorf("and %d more", n))
	}
	return errors.Join(errs...)
}

// Follow reads the next entry.
func (a *Auditor) Follow(e Entry) {
	a.at++
	if e.Call == Crash {
		a.forgotten = never
		if e.Ended {
			a.forgotten = a.at
		}
		return
	}
	if e.Call == Fault {
		a.find(nil, 0, "%s: %s", e.Caller, e.Text)
		return
	}
	begin, ok := a.open[e.Caller]
	delete(a.open, e.Caller)
	switch {
	case !e.Ended:
		if ok {
			a.cut(begin)
		}
		a.open[e.Caller] = opened{e, a.at, a.begin(e)}
	case !ok || begin.Call != e.Call:
		a.find(nil, 0, "%s: %s ends without a begin", e.Caller, e.Call)
	case e.Undone:
		a.undone(begin)
	default:
		a.Counted[e.Call] += e.Count
		a.end(e, begin)
	}
}

// CutOff takes it that none of the calls that have not ended will do so.
func (a *Auditor) CutOff() {
	for _, o := range a.open {
		a.cut(o)
	}
	clear(a.open)
}

func (a *Auditor) begin(e Entry) *book {
	if e.Call == Publish {
		for _, m := range e.Messages {
			known := a.messages.at(m.N)
			if known.begun > 0 {
				a.find(nil, m.N, "was published twice")
			}
			*known = message{topic: e.Topic, begun: a.at}
		}
		return nil
	}
	if e.Call == Subscribe {
		b := &book{Made: *e.Made, name: e.Subscription, began: a.at, created: never}
		a.books[e.Subscription] = b
		return b
	}
	b := a.books[e.Subscription]
	if b == nil {
		a.find(nil, 0, "%s: %s on %s, which was never created", e.Caller, e.Call, e.Subscription)
		return nil
	}
	for _, m := range e.Messages {
		f := a.fate(b, m)
		switch e.Call {
		case GiveBack:
			f.givenBack++
		case Reprocess:
			f.renewedAt, f.deadAt, f.present = never, 0, true
		case Purge:
			f.present = true
		case Bury:
			f.buried = true
		}
	}
	return b
}

func (a *Auditor) cut(o opened) {
	a.Cut++
	var group []int
	for _, m := range o.Messages {
		switch {
		case o.Call == Publish:
			a.messages.at(m.N).state = cutOff
			group = append(group, m.N)
		case o.book == nil:
		case o.Call == Ack:
			a.fate(o.book, m).unsure = true
			o.book.unsure++
		case o.Call == Purge:
			a.fate(o.book, m).maybe = true
			o.book.unclear++
		}
	}
	if group != nil {
		a.cutOff = append(a.cutOff, group)
		a.Unsure += len(group)
	}
}

func (a *Auditor) undone(o opened) {
	switch o.Call {
	case Publish:
		a.Undone += len(o.Messages)
		for _, m := range o.Messages {
			a.messages.at(m.N).state = rolledBack
		}
	case Subscribe:
		delete(a.books, o.Subscription)
	}
}

// fate returns what is known about a message in a subscription: its id and what was published belong together for ever.
func (a *Auditor) fate(b *book, m Message) *fate {
	known := a.messages.at(m.N)
	if known.begun == 0 {
		a.find(b, m.N, "with the id %v was never published", m.ID)
		known.begun = a.at
	}
	if m.ID != (fastpubsub.ID{}) {
		a.identify(b, m.N, known, m.ID)
	}
	return b.fates.at(m.N)
}

func (a *Auditor) identify(b *book, n int, known *message, id fastpubsub.ID) {
	if other, ok := a.byID[id]; ok && other != n {
		a.twice++
		a.find(b, n, "has the id %v, which message %d has, too", id, other)
		return
	}
	a.byID[id] = n
	if known.id != id && known.id != (fastpubsub.ID{}) {
		a.find(b, n, "has two ids, %v and %v", known.id, id)
	}
	known.id = id
}

func (a *Auditor) end(e Entry, begin opened) {
	if e.Count < 0 || e.Count > len(e.Messages) {
		a.find(begin.book, 0, "%s of %d messages returned %d", e.Call, len(e.Messages), e.Count)
	}
	if e.Call == Publish {
		for _, m := range e.Messages {
			known := a.messages.at(m.N)
			known.state, known.ended = committed, a.at
			a.identify(nil, m.N, known, m.ID)
		}
		return
	}
	b := begin.book
	if b == nil {
		return
	}
	all := e.Count == len(e.Messages)
	switch e.Call {
	case Subscribe:
		b.created = a.at
	case Unsubscribe:
		b.deleted = a.at
	case Ack:
		b.acked += e.Count
	case Purge:
		b.purged += e.Count
	case Consume:
		if b.deleted > 0 && b.deleted < begin.at && len(e.Messages) > 0 {
			a.find(b, e.Messages[0].N, "was delivered though the subscription had been deleted")
		}
	}
	for _, m := range e.Messages {
		f := a.fate(b, m)
		switch e.Call {
		case Consume, Handle:
			a.handed(b, f, m, begin.at, e.Call)
			if e.Call == Handle && e.Count > 0 {
				f.unsure = true // it is acked behind the handler
			}
		case Ack:
			if all && f.ackedAt > 0 {
				a.find(b, m.N, "was acked by two calls")
			}
			if all {
				f.ackedAt = a.at
				f.seen = nil
			} else if e.Count > 0 {
				f.unsure = true
			}
		case Nack:
			if all && m.Attempts == b.Attempts && f.renewedAt == 0 {
				f.deadAt = a.at
			}
		case Bury:
			if all && f.renewedAt == 0 {
				f.deadAt = a.at
			}
		case Reprocess:
			f.renewedAt = a.at
		case Purge:
			if all {
				f.purgedAt = a.at
			} else if e.Count > 0 {
				f.maybe = true
			}
		}
	}
}

// handed is a delivery by a call that began with the entry begun.
func (a *Auditor) handed(b *book, f *fate, m Message, begun int, call Call) {
	f.present = true
	known := a.messages.at(m.N)
	switch {
	case known.topic != b.Topic && known.topic != "":
		a.find(b, m.N, "was published to %s, and delivered here", known.topic)
	case !b.wants(m.N):
		a.find(b, m.N, "was delivered, though the filter does not let it through")
	case known.state == committed && known.ended < b.began:
		a.find(b, m.N, "was delivered, though it was committed before the subscription was created")
	}
	if m.Attempts < 1 || m.Attempts > b.Attempts {
		a.find(b, m.N, "was delivered as attempt %d of %d", m.Attempts, b.Attempts)
	}
	if call == Handle || b.Receives {
		if call == Consume && f.ackedAt > 0 && f.ackedAt < begun {
			a.find(b, m.N, "was delivered again after it had been acked")
		}
		return
	}
	if f.ackedAt > 0 && f.ackedAt < begun {
		a.find(b, m.N, "was delivered again after it had been acked")
	}
	if f.purgedAt > 0 && f.purgedAt < begun {
		a.find(b, m.N, "was delivered after it had been purged")
	}
	if f.deadAt > 0 && f.deadAt < begun {
		a.find(b, m.N, "was delivered again after its last attempt had failed")
	}
	since := max(f.renewedAt, a.forgotten)
	for _, h := range f.seen {
		if h.ended < begun && h.begun > since && m.Attempts <= h.attempts-f.givenBack {
			a.find(b, m.N, "was delivered as attempt %d after attempt %d, and given back %d times", m.Attempts, h.attempts, f.givenBack)
		}
	}
	if f.ackedAt == 0 {
		f.seen = append(f.seen, handing{begun, a.at, m.Attempts})
	}
}

// Account accounts for each message of a subscription, and returns how many there are, and how many of them are dead letters.
// All subscriptions were settled, and the ledger has been followed to its end.
func (a *Auditor) Account(subscription string, rest Rest) (all, dead int) {
	b := a.books[subscription]
	for _, m := range rest.DeadLetters {
		f := a.fate(b, m)
		if f.dead {
			a.find(b, m.N, "is listed twice as a dead letter")
		}
		if m.Attempts != b.Attempts && !f.buried && !b.Receives {
			a.find(b, m.N, "is a dead letter after %d of %d attempts", m.Attempts, b.Attempts)
		}
		f.dead, f.present = true, true
	}
	for n, effects := range rest.Effects {
		b.fates.at(n).effects = effects
	}
	lost := 0
	for n, m := range a.messages.all() {
		if m.begun == 0 {
			continue
		}
		f := b.fates.find(n)
		if f == nil {
			f = &fate{}
		}
		if f.present {
			all++
			if m.state == rolledBack {
				a.find(b, n, "was rolled back, and delivered")
			}
		}
		if f.dead {
			dead++
		}
		due := m.state == committed && m.topic == b.Topic && b.wants(n) && m.begun > b.created
		switch {
		case f.dead && f.ackedAt > 0:
			a.find(b, n, "was acked and is a dead letter")
		case f.dead && f.purgedAt > 0:
			a.find(b, n, "was purged and is a dead letter")
		case f.purgedAt > 0 && f.ackedAt > 0:
			a.find(b, n, "was acked and purged")
		case f.dead, f.purgedAt > 0, f.maybe:
		case f.deadAt > 0:
			a.find(b, n, "is not a dead letter, though its last attempt failed")
		case (due || f.present) && f.ackedAt == 0 && f.effects == 0 && (!f.unsure || b.Effects):
			lost++
			a.find(b, n, "is lost: it was committed, and is neither acked nor a dead letter")
		}
		if !b.Effects {
			continue
		}
		switch {
		case f.effects > 1:
			a.find(b, n, "has %d effects", f.effects)
		case f.effects == 1 && (f.dead || f.purgedAt > 0):
			a.find(b, n, "has an effect, though it is a dead letter or was purged")
		case f.effects == 0 && f.ackedAt > 0:
			a.find(b, n, "was acked in a transaction whose effect is not there")
		}
	}
	a.lost += lost
	a.accountCutOff(b)
	a.compareMetrics(b, rest, all, dead)
	return all, dead
}

// accountCutOff finds publishes that were cut off and are there in part.
func (a *Auditor) accountCutOff(b *book) {
	for _, group := range a.cutOff {
		wanted, present := 0, 0
		for _, n := range group {
			m := a.messages.at(n)
			if m.topic != b.Topic || m.begun < b.created || !b.wants(n) {
				continue
			}
			wanted++
			if f := b.fates.find(n); f != nil && f.present {
				present++
			}
		}
		if present > 0 && present < wanted {
			a.find(b, group[0], "and others were published in a transaction that was cut off: of %d messages %d are there", wanted, present)
		}
		for _, other := range a.books { // what is there is there for all
			if other == b || other.deleted > 0 || other.Topic != b.Topic || len(group) == 0 {
				continue
			}
			for _, n := range group {
				m := a.messages.at(n)
				if m.begun < b.created || m.begun < other.created || !b.wants(n) || !other.wants(n) {
					continue
				}
				f, g := b.fates.find(n), other.fates.find(n)
				if (f != nil && f.present) && (g == nil || !g.present) {
					a.find(other, n, "was published in a transaction that was cut off: it was delivered to %s, and is not here", b.name)
				}
			}
		}
	}
}

// compareMetrics holds what the engine counts against what is there.
func (a *Auditor) compareMetrics(b *book, rest Rest, all, dead int) {
	low, high := all-b.purged-b.unclear, all-b.purged
	m := rest.Before
	if sum := int(m.Available + m.Delivered + m.Acked + m.DeadLetters); (sum < low || sum > high) && !m.Estimated {
		a.find(b, 0, "metrics count %d messages before the end, want %d to %d: %+v", sum, low, high, m)
	}
	m = rest.After
	if m.Available+m.Delivered != 0 || int(m.DeadLetters) != dead || int(m.Acked) < low-dead || int(m.Acked) > high-dead {
		a.find(b, 0, "metrics are %+v in the end, want %d to %d acked and %d dead letters", m, low-dead, high-dead, dead)
	}
	if n := int(m.Acked); (n < b.acked || n > b.acked+b.unsure) && !b.Receives {
		a.find(b, 0, "%d messages are acked, but callers were told %d, and for %d not told", n, b.acked, b.unsure)
	}
	if b.Effects {
		n := 0
		for _, effects := range rest.Effects {
			n += effects
		}
		if n != int(m.Acked) {
			a.find(b, 0, "%d messages are acked, and there are %d effects", m.Acked, n)
		}
	}
}

// A Settlement says how to end the work on a subscription.
type Settlement struct {
	Broker       *fastpubsub.Broker
	Subscription string
	Move         func(ctx context.Context, d time.Duration) error // the clock on
	Record       Recorder
	AckBy        func(ctx context.Context, msgs []Message) (int, error) // in place of Broker.Ack
}

// Rest is what was left of a subscription in the end.
type Rest struct {
	Before, After fastpubsub.Metrics
	DeadLetters   []Message
	Effects       map[int]int // by message, of a subscription that has them
}

// Settle takes what waits in a subscription out of it, and acks it; the clock moves on until nothing is left. Nobody else may
// be working.
func Settle(ctx context.Context, s Settlement) (rest Rest, err error) {
	if rest.Before, err = s.Broker.Metrics(ctx, s.Subscription); err != nil {
		return rest, err
	}
	if err := s.drain(ctx); err != nil {
		return rest, err
	}
	if rest.After, err = s.Broker.Metrics(ctx, s.Subscription); err != nil {
		return rest, err
	}
	const page = 100
	for {
		letters, err := s.Broker.DeadLetters(ctx, s.Subscription, fastpubsub.ListOptions{Offset: len(rest.DeadLetters), Limit: page})
		if err != nil || len(letters) == 0 {
			return rest, err
		}
		for _, l := range letters {
			rest.DeadLetters = append(rest.DeadLetters, Received(l.ID, l.Payload, l.DeliveryAttempts))
		}
	}
}

func (s *Settlement) drain(ctx context.Context) error {
	const caller = "auditor"
	for range 20 {
		for {
			msgs, err := s.Record.Consume(ctx, s.Broker, s.Subscription, fastpubsub.ConsumeOptions{Consumer: caller, Max: 100})
			if err != nil {
				return err
			}
			if len(msgs) == 0 {
				break
			}
			if s.AckBy == nil {
				err = s.Record.Ack(ctx, s.Broker, s.Subscription, caller, msgs)
			} else {
				err = s.Record.Change(Ack, s.Subscription, caller, msgs, func() (int, error) { return s.AckBy(ctx, msgs) })
			}
			if err != nil {
				return err
			}
		}
		m, err := s.Broker.Metrics(ctx, s.Subscription)
		if err != nil || m.Available+m.Delivered == 0 {
			return err
		}
		if err := s.Move(ctx, time.Hour); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: messages wait that nobody gets", s.Subscription)
}

// pages is a sparse list by number.
type pages[T any] struct{ pages map[int]*[pageSize]T }

const pageSize = 256

// find returns nil where nobody has asked for that page.
func (p *pages[T]) find(n int) *T {
	n = pageIndex(n)
	page := p.pages[n/pageSize]
	if page == nil {
		return nil
	}
	return &page[n%pageSize]
}

func (p *pages[T]) at(n int) *T {
	n = pageIndex(n)
	page := p.pages[n/pageSize]
	if page == nil {
		if p.pages == nil {
			p.pages = map[int]*[pageSize]T{}
		}
		page = new([pageSize]T)
		p.pages[n/pageSize] = page
	}
	return &page[n%pageSize]
}

// pageIndex has a place for the number of what was never published, -1.
func pageIndex(n int) int {
	if n < 0 {
		return math.MaxInt
	}
	return n
}

func (p *pages[T]) all() func(yield func(int, *T) bool) {
	return func(yield func(int, *T) bool) {
		for _, i := range slices.SortedFunc(maps.Keys(p.pages), cmp.Compare) {
			for j := range p.pages[i] {
				if !yield(i*pageSize+j, &p.pages[i][j]) {
					return
				}
			}
		}
	}
}
