package fastpubsub

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/fastpubsub/fastpubsub/store"
)

// How often those who wait are looked after; see waits.
const (
	// tickInterval is the time between looks at whether anybody has published at all, and listeningTick that while
	// notifications arrive.
	tickInterval  = 100 * time.Millisecond
	listeningTick = time.Second
	// lookInterval is how long a subscription is left alone that nobody seems to have published to.
	lookInterval  = 5 * time.Second
	listeningLook = 15 * time.Second
	// pollShare says that of the time one part goes into looking and so many, at least, into not.
	pollShare         = 20
	listeningShare    = 100
	longestRest       = 2 * time.Second
	soonest           = 5 * time.Millisecond // from one look at a subscription to the next
	lookAtOnce        = 1000                 // subscriptions
	pollTimeout       = 5 * time.Second
	pollRetry         = time.Second
	rememberFor       = time.Minute // a subscription that nobody waits for
	fruitlessFrom     = time.Millisecond
	fruitlessUpTo     = 100 * time.Millisecond
	fruitlessLookUpTo = time.Second
)

// waits knows who in this process waits for messages, and wakes them: as many as are needed to take what was published.
// Wakes are hints. They come from calls of Publish on this Broker and from notifications; and from a poll, one for all who
// wait, which goes on beneath the others. It asks whether anybody has published since, and if so, or when something
// becomes due, or now and then in any case, which of the subscriptions have something.
//
// A goroutine polls while somebody waits, and ends shortly after nobody does.
type waits struct {
	look     func(ctx context.Context, subscriptionIDs []string) ([]store.Look, error)
	lastBase func(ctx context.Context) (int64, error)
	logger   *slog.Logger

	mu        sync.Mutex // protects the rest
	subs      map[string]*waitedFor
	topics    map[string]map[*waitedFor]struct{}
	waiting   int
	polling   bool
	listening bool
	wakes     uint64    // so far
	base      int64     // as it was at the last tick; -1 before the first
	tickAt    time.Time // the next
	restUntil time.Time // no look before, but at subscriptions whose topic is not known: nothing else wakes them
	failed    bool      // the last call; then there is none at all before
	kick      chan struct{}
}

// waitedFor is a subscription that somebody waits for, or did a short while ago.
type waitedFor struct {
	id       string
	topic    string // empty until it is known
	filtered bool
	members  int       // calls that take from it or wait for it
	left     time.Time // when there were none any more
	queue    []*waiter // who waits, the first first
	missed   bool      // something was published while members were looking and nobody waited

	lookAt time.Time
	pause  time.Duration // until the look after that

	// After a wake for nothing, because of a filter or because others were faster, the next is put off.
	fruitless time.Duration
	notBefore time.Time
	putOff    bool // a wake is
}

type waiter struct {
	wanted int
	woken  chan struct{} // closed under waits.mu
	byLook bool
}

func newWaits(look func(context.Context, []string) ([]store.Look, error), lastBase func(context.Context) (int64, error), logger *slog.Logger) *waits {
	return &waits{
		look: look, lastBase: lastBase, logger: logger, base: -1,
		subs: map[string]*waitedFor{}, topics: map[string]map[*waitedFor]struct{}{}, kick: make(chan struct{}, 1),
	}
}

// A member is a call that takes messages from a subscription and waits when there are none. It is used by one goroutine.
type member struct {
	w *waits
	s *waitedFor
	// owed says that a wake was given to this member, and not yet made use of.
	owed   bool
	byLook bool
}

// join must come before the first look of who may wait: what is published after it is not missed.
func (w *waits) join(subscriptionID string) *member {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.subs[subscriptionID]
	if s == nil {
		w.forget()
		s = &waitedFor{id: subscriptionID}
		w.subs[subscriptionID] = s
	}
	s.members++
	return &member{w: w, s: s}
}

// forget removes some subscriptions that nobody has waited for for long.
func (w *waits) forget() {
	tries := 4
	for id, s := range w.subs {
		if s.members == 0 && time.Since(s.left) > rememberFor {
			w.move(s, "")
			delete(w.subs, id)
		}
		if tries--; tries == 0 {
			return
		}
	}
}

// move enters a subscription under its topic.
func (w *waits) move(s *waitedFor, topic string) {
	if s.topic == topic {
		return
	}
	if all := w.topics[s.topic]; all != nil {
		if delete(all, s); len(all) == 0 {
			delete(w.topics, s.topic)
		}
	}
	s.topic = topic
	if topic == "" {
		return
	}
	if w.topics[topic] == nil {
		w.topics[topic] = map[*waitedFor]struct{}{}
	}
	w.topics[topic][s] = struct{}{}
}

// leave passes a wake on that was not made use of.
func (m *member) leave() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.s.members--
	m.s.left = time.Now()
	if m.owed {
		m.w.wake(m.s, 1, m.byLook)
	}
}

// claimed says what the member has found.
func (m *member) claimed(n, wanted int) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	s := m.s
	switch {
	case n > 0:
		s.fruitless, s.notBefore = 0, time.Time{}
		m.w.wakePutOff(s)
		if n >= wanted { // there may be more
			m.w.wake(s, 1, m.byLook)
		}
		m.w.lookSoon(s, m.w.tick()) // leases have got deadlines
	case m.owed:
		upTo := fruitlessUpTo
		if m.byLook || s.filtered {
			upTo = fruitlessLookUpTo
		}
		s.fruitless = min(max(2*s.fruitless, fruitlessFrom), upTo)
		s.notBefore = time.Now().Add(s.fruitless)
	}
	m.owed = false
}

// wait waits until there may be something to take, for up to so many messages; for no longer than d. It returns false when that
// is over.
func (m *member) wait(ctx context.Context, wanted int, d time.Duration) (bool, error) {
	w, s := m.w, m.s
	w.mu.Lock()
	if s.missed && !time.Now().Before(s.notBefore) {
		s.missed = false
		m.owed, m.byLook = true, false
		w.mu.Unlock()
		return true, ctx.Err()
	}
	if s.missed {
		s.missed = false
		w.putOffWake(s)
	}
	me := &waiter{wanted: wanted, woken: make(chan struct{})}
	s.queue = append(s.queue, me)
	w.waiting++
	if s.topic == "" {
		w.plan(s, 0, w.quietPause())
	} else {
		w.plan(s, w.longestPause(), w.quietPause())
	}
	if !w.polling {
		w.polling = true
		go w.poll()
	}
	w.mu.Unlock()

	timer := time.NewTimer(d)
	defer timer.Stop()
	var err error
	select {
	case <-me.woken:
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-me.woken: // perhaps at the last moment
		m.owed, m.byLook = true, me.byLook
		return true, err
	default:
	}
	s.queue = slices.DeleteFunc(s.queue, func(other *waiter) bool { return other == me })
	w.left(1)
	return false, err
}

// left counts waiters out.
func (w *waits) left(n int) {
	if w.waiting -= n; w.waiting == 0 {
		w.nudge() // the poll may end
	}
}

// nudge makes the poll look at its watch.
func (w *waits) nudge() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *waits) tick() time.Duration {
	if w.listening {
		return listeningTick
	}
	return tickInterval
}

// longestPause is that between two looks at a subscription where nothing happens.
func (w *waits) longestPause() time.Duration {
	if w.listening {
		return listeningLook
	}
	return lookInterval
}

// quietPause is that for a subscription of which is known that somebody waits, and no more. What happens later is heard of while
// notifications arrive.
func (w *waits) quietPause() time.Duration {
	if w.listening {
		return listeningLook
	}
	return tickInterval
}

// lookSoon plans a look in d, if none is planned before that. Something has happened, so the next ones follow soon.
func (w *waits) lookSoon(s *waitedFor, d time.Duration) { w.plan(s, d, w.tick()) }

// plan plans a look in d, if none is planned before that, and the pause from which those that follow go on. One that is due, because
// it was planned when nobody waited, has to be seen to now.
func (w *waits) plan(s *waitedFor, d, pause time.Duration) {
	now := time.Now()
	at := now.Add(max(d, 0))
	sooner := s.lookAt.IsZero() || at.Before(s.lookAt)
	if sooner {
		s.lookAt, s.pause = at, pause
	}
	if len(s.queue) > 0 && (sooner || !s.lookAt.After(now)) {
		w.nudge()
	}
}

// published wakes those who wait for n messages that are there now.
func (w *waits) published(topicID string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wakes++
	for s := range w.topics[topicID] {
		if s.filtered { // perhaps none of them is for it
			w.wake(s, 1, false)
		} else {
			w.wake(s, n, false)
		}
	}
}

// changed plans a look at a subscription in which something may have become due.
func (w *waits) changed(subscriptionID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.subs[subscriptionID]; s != nil {
		w.lookSoon(s, 0)
	}
}

// wake wakes waiters who take n messages in all.
func (w *waits) wake(s *waitedFor, n int, byLook bool) {
	if time.Now().Before(s.notBefore) {
		w.putOffWake(s)
		return
	}
	woken := 0
	for ; n > 0 && woken < len(s.queue); woken++ {
		waiter := s.queue[woken]
		waiter.byLook = byLook
		close(waiter.woken)
		n -= waiter.wanted
	}
	s.queue = slices.Delete(s.queue, 0, woken)
	w.left(woken)
	if n > 0 && s.members > len(s.queue) {
		s.missed = true
	}
}

// putOffWake wakes one who waits, later; if there is much, that wakes others.
func (w *waits) putOffWake(s *waitedFor) {
	if s.putOff {
		return
	}
	s.putOff = true
	time.AfterFunc(time.Until(s.notBefore), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.wakePutOff(s)
	})
}

func (w *waits) wakePutOff(s *waitedFor) {
	if s.putOff {
		s.putOff = false
		w.wake(s, 1, false)
	}
}

// wakeAll makes everybody see for themselves.
func (w *waits) wakeAll(s *waitedFor) {
	for _, waiter := range s.queue {
		close(waiter.woken)
	}
	n := len(s.queue)
	s.queue = nil
	w.left(n)
}

// setListening says whether notifications arrive from now on. When they begin to, some may have been missed.
func (w *waits) setListening(listening bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listening = listening
	w.lookAtEach()
}

// lookAtAll looks at all subscriptions that somebody waits for, since something may have been missed.
func (w *waits) lookAtAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lookAtEach()
}

func (w *waits) lookAtEach() {
	w.tickAt = time.Time{}
	for _, s := range w.subs {
		w.lookSoon(s, 0)
	}
	w.nudge()
}

// isListening says whether notifications arrive.
func (w *waits) isListening() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.listening
}

func (w *waits) poll() {
	for {
		pause, ids, tick := w.next()
		if pause < 0 {
			return
		}
		if pause > 0 {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-w.kick:
				timer.Stop()
			}
			continue
		}
		if err := w.pollOnce(ids, tick); err != nil {
			w.logger.LogAttrs(context.Background(), slog.LevelDebug, "poll failed", slog.Any("error", err))
			w.pollFailed()
		}
	}
}

// next says what to do: to end, when pause is negative; to pause; or to look at subscriptions, or whether anybody has
// published at all.
func (w *waits) next() (pause time.Duration, ids []string, tick bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == 0 {
		w.polling = false
		return -1, nil, false
	}
	now := time.Now()
	resting := now.Before(w.restUntil)
	if !resting && !now.Before(w.tickAt) {
		return 0, nil, true
	}
	until := w.tickAt
	if resting {
		until = w.restUntil
	}
	for _, s := range w.subs {
		if len(s.queue) > 0 && s.lookAt.Before(until) && !(resting && (w.failed || s.topic != "")) {
			until = s.lookAt
		}
	}
	if until.After(now) {
		return until.Sub(now), nil, false
	}
	for _, s := range w.subs {
		// Those whose turn comes soon go with it.
		if len(s.queue) == 0 || s.lookAt.Sub(now) > s.pause/2 || resting && s.topic != "" {
			continue
		}
		s.lookAt = time.Time{} // who plans one from now on wants another than this
		if ids = append(ids, s.id); len(ids) == lookAtOnce {
			break
		}
	}
	return 0, ids, false
}

func (w *waits) pollOnce(ids []string, tick bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), pollTimeout)
	defer cancel()
	if tick {
		base, err := w.lastBase(ctx)
		if err != nil {
			return err
		}
		w.ticked(base)
		return nil
	}
	w.mu.Lock()
	wakes := w.wakes
	w.mu.Unlock()
	start := time.Now()
	looks, err := w.look(ctx, ids)
	if err != nil {
		return err
	}
	w.looked(ids, looks, wakes, time.Since(start))
	return nil
}

// ticked notes how far publishing has got.
func (w *waits) ticked(base int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = false
	w.tickAt = time.Now().Add(w.tick()*3/4 + rand.N(w.tick()/2))
	if base != w.base && w.base >= 0 {
		for _, s := range w.subs {
			w.lookSoon(s, 0)
			s.pause = w.tick()
		}
	}
	w.base = base
}

// looked wakes the first of those who wait for something that is there.
func (w *waits) looked(ids []string, looks []store.Look, wakes uint64, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = false
	now := time.Now()
	share := time.Duration(pollShare)
	if w.listening {
		share = listeningShare
	}
	// A single subscription is looked at as soon as anything seems to be there; many are not to take the machine.
	if took *= share; took > 10*soonest {
		w.restUntil = now.Add(min(took, longestRest)) // perhaps it only had to wait for a connection
	}
	found := make(map[string]store.Look, len(looks))
	for _, l := range looks {
		found[l.SubscriptionID] = l
	}
	for _, id := range ids {
		s := w.subs[id]
		if s == nil {
			continue
		}
		l, ok := found[id]
		if !ok { // it was deleted, or never was; they will be told
			w.move(s, "")
			w.wakeAll(s)
			continue
		}
		isNew := s.topic != l.TopicID
		w.move(s, l.TopicID)
		s.filtered = l.Filtered
		s.pause = min(2*max(s.pause, w.tick()), w.longestPause())
		again := s.pause*3/4 + rand.N(s.pause/2)
		switch {
		case l.Ready && now.Before(s.notBefore):
			again = s.notBefore.Sub(now)
		case l.Ready:
			w.wake(s, 1, true)
			again, s.pause = w.tick(), w.tick()
		case isNew && w.wakes != wakes: // one of these may have been meant for it
			w.wake(s, 1, true)
		case l.DueInSeconds != nil:
			again = min(again, max(time.Duration(*l.DueInSeconds*float64(time.Second)), soonest))
		}
		if at := now.Add(again); s.lookAt.IsZero() || at.Before(s.lookAt) {
			s.lookAt = at
		}
	}
}

// pollFailed lets those who wait find out for themselves what is wrong.
func (w *waits) pollFailed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = true
	w.restUntil = time.Now().Add(pollRetry/2 + rand.N(pollRetry))
	for _, s := range w.subs {
		w.wakeAll(s)
	}
}
