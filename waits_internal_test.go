package fastpubsub

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fastpubsub/fastpubsub/store"
)

// fakePoll is what waits asks the database, with subscriptions that are all of topic t.
type fakePoll struct {
	mu       sync.Mutex
	looks    int // calls
	ids      int // subscriptions in them
	ticks    int
	base     int64
	filtered bool
	ready    bool
	dueAt    time.Time // unless zero
	err      error
	slow     time.Duration // a look
}

func (f *fakePoll) waits() *waits {
	return newWaits(func(_ context.Context, ids []string) ([]store.Look, error) {
		f.mu.Lock()
		slow := f.slow
		f.mu.Unlock()
		time.Sleep(slow)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.looks++
		f.ids += len(ids)
		if f.err != nil {
			return nil, f.err
		}
		var due *float64
		if !f.dueAt.IsZero() {
			seconds := time.Until(f.dueAt).Seconds()
			due = &seconds
		}
		var all []store.Look
		for _, id := range ids {
			if id != "missing" {
				all = append(all, store.Look{SubscriptionID: id, TopicID: "t", Filtered: f.filtered, Ready: f.ready, DueInSeconds: due})
			}
		}
		return all, nil
	}, func(context.Context) (int64, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.ticks++
		return f.base, f.err
	}, slog.New(slog.DiscardHandler))
}

func (f *fakePoll) counts() (looks, ticks int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.looks, f.ticks
}

// start has n calls wait for a subscription, for wanted messages each. Each wake is counted, and the call then ends.
func start(t *testing.T, w *waits, subscriptionID string, n, wanted int, woken *atomic.Int32) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range n {
		m := w.join(subscriptionID)
		m.claimed(0, wanted)
		wg.Go(func() {
			defer m.leave()
			ok, err := m.wait(ctx, wanted, time.Hour)
			if ok && err == nil {
				woken.Add(1)
				m.claimed(1, wanted+1)
			}
		})
	}
	synctest.Wait()
	time.Sleep(time.Millisecond) // the topic is known then
	synctest.Wait()
	return func() {
		cancel()
		wg.Wait()
	}
}

func TestWaitsWakeAsManyAsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(fakePoll).waits()
		var woken atomic.Int32
		defer start(t, w, "s", 100, 10, &woken)()
		for _, tt := range []struct{ published, want int }{{1, 1}, {25, 3}, {10, 1}, {1000, 95}} {
			woken.Store(0)
			w.published("other", 1000)
			w.published("t", tt.published)
			synctest.Wait()
			if got := int(woken.Load()); got != tt.want {
				t.Errorf("%d messages wake %d calls that take 10, want %d", tt.published, got, tt.want)
			}
		}
	})
}

// A call that has found as many as it wanted wakes another one: there may be more.
func TestWaitsChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(fakePoll).waits()
		var woken atomic.Int32
		defer start(t, w, "s", 2, 10, &woken)()
		m := w.join("s")
		defer m.leave()
		m.claimed(9, 10)
		synctest.Wait()
		if woken.Load() != 0 {
			t.Error("a call that found less than it wanted wakes another")
		}
		m.claimed(10, 10)
		synctest.Wait()
		if woken.Load() != 1 {
			t.Errorf("%d are woken, want 1", woken.Load())
		}
	})
}

// What is published while the only call is looking, and perhaps was not seen by it, wakes it.
func TestWaitsMissNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(fakePoll).waits()
		var woken atomic.Int32
		start(t, w, "s", 1, 1, &woken)() // so that the topic is known
		m := w.join("s")
		defer m.leave()
		w.published("t", 1)
		m.claimed(0, 1)
		if ok, err := m.wait(t.Context(), 1, time.Millisecond); !ok || err != nil {
			t.Errorf("wait returned %v, %v, want to be woken", ok, err)
		}
		m.claimed(0, 1)
		if ok, err := m.wait(t.Context(), 1, time.Millisecond); ok || err != nil {
			t.Errorf("wait returned %v, %v, want that the time is over", ok, err)
		}
	})
}

// A wake that its call cannot make use of goes to another.
func TestWaitsPassOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(fakePoll).waits()
		var woken atomic.Int32
		first := w.join("s")
		got := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := first.wait(ctx, 1, time.Hour)
			got <- err
		}()
		synctest.Wait()
		defer start(t, w, "s", 1, 1, &woken)()
		w.mu.Lock() // both happen before it runs again
		cancel()
		w.wake(w.subs["s"], 1, false)
		w.mu.Unlock()
		<-got
		first.leave()
		synctest.Wait()
		if woken.Load() != 1 {
			t.Errorf("the other one was woken %d times, want once", woken.Load())
		}
	})
}

// A filter that lets nothing through is not evaluated for every message.
func TestWaitsFiltered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePoll{filtered: true}
		w := f.waits()
		var claims atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 50 {
			m := w.join("s")
			wg.Go(func() {
				defer m.leave()
				for {
					if ok, err := m.wait(ctx, 10, time.Hour); !ok || err != nil {
						return
					}
					claims.Add(1)
					m.claimed(0, 10)
				}
			})
		}
		time.Sleep(time.Second)
		f.mu.Lock()
		f.ready = true // as long as messages come
		f.mu.Unlock()
		for range 10_000 { // in ten seconds
			w.published("t", 100)
			time.Sleep(time.Millisecond)
		}
		if got := claims.Load(); got < 10 || got > 150 {
			t.Errorf("%d claims for nothing in 10 seconds of 1,000 calls a second, want about one every 100 ms", got)
		}
		cancel()
		wg.Wait()
	})
}

// However many wait, it is one poll, and it goes easy when there is nothing.
func TestWaitsPollTogether(t *testing.T) {
	for _, tt := range []struct {
		subscriptions, each int
		listening           bool
		maxLooks, maxTicks  int // in a minute
	}{
		{1, 200, false, 25, 900},
		{200, 1, false, 60, 900},
		{200, 1, true, 20, 90},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := new(fakePoll)
			w := f.waits()
			w.setListening(tt.listening)
			var woken atomic.Int32
			for i := range tt.subscriptions {
				defer start(t, w, "s"+strconv.Itoa(i), tt.each, 1, &woken)()
			}
			time.Sleep(30 * time.Second)
			looks, ticks := f.counts()
			time.Sleep(time.Minute)
			moreLooks, moreTicks := f.counts()
			if n := moreLooks - looks; n == 0 || n > tt.maxLooks {
				t.Errorf("%+v: %d looks in a minute", tt, n)
			}
			if n := moreTicks - ticks; n == 0 || n > tt.maxTicks {
				t.Errorf("%+v: %d ticks in a minute", tt, n)
			}
			if woken.Load() != 0 {
				t.Errorf("%+v: %d are woken for nothing", tt, woken.Load())
			}
		})
	}
}

// While notifications arrive and none comes, those who begin to wait, and who wait again, cost a look and then one now and then.
func TestWaitsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fakePoll)
		w := f.waits()
		w.setListening(true)
		const subscriptions = 200
		looked := func() int {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.ids
		}
		var woken atomic.Int32
		for i := range subscriptions {
			defer start(t, w, "s"+strconv.Itoa(i), 1, 1, &woken)()
		}
		time.Sleep(10 * time.Second)
		if n := looked(); n != subscriptions {
			t.Errorf("%d looks at %d subscriptions in 10 seconds", n, subscriptions)
		}
		before := looked()
		for range 60 { // and somebody comes and goes
			for i := range subscriptions {
				start(t, w, "s"+strconv.Itoa(i), 1, 1, &woken)()
			}
			time.Sleep(time.Second)
		}
		if n := looked() - before; n == 0 || n > 8*subscriptions {
			t.Errorf("%d looks at %d subscriptions in a minute", n, subscriptions)
		}
	})
}

// What nobody tells is found: by the numbers of record batches, and when something becomes due.
func TestWaitsPoll(t *testing.T) {
	for _, listening := range []bool{false, true} {
		t.Run("published/"+strconv.FormatBool(listening), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(fakePoll)
				w := f.waits()
				w.setListening(listening)
				var woken atomic.Int32
				defer start(t, w, "s", 10, 1, &woken)()
				time.Sleep(time.Hour / 2)
				f.mu.Lock()
				f.base++
				f.ready = true
				f.mu.Unlock()
				time.Sleep(2 * time.Second)
				if woken.Load() == 0 {
					t.Error("nobody is woken within two seconds")
				}
			})
		})
		t.Run("due/"+strconv.FormatBool(listening), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakePoll{dueAt: time.Now().Add(700 * time.Millisecond)}
				w := f.waits()
				w.setListening(listening)
				var woken atomic.Int32
				defer start(t, w, "s", 1, 1, &woken)()
				time.Sleep(500 * time.Millisecond)
				f.mu.Lock()
				f.ready = true
				f.mu.Unlock()
				time.Sleep(300 * time.Millisecond)
				if woken.Load() != 1 {
					t.Error("nobody is woken when it is due")
				}
			})
		})
	}
}

// Who waits is told when the subscription is gone, or the database.
func TestWaitsTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fakePoll)
		w := f.waits()
		var missing, others atomic.Int32
		defer start(t, w, "missing", 3, 1, &missing)()
		defer start(t, w, "s", 3, 1, &others)()
		if missing.Load() != 3 || others.Load() != 0 {
			t.Errorf("%d of 3 whose subscription is gone are woken, and %d others", missing.Load(), others.Load())
		}
		f.mu.Lock()
		f.err = errors.New("the database is away")
		f.mu.Unlock()
		time.Sleep(time.Second)
		if others.Load() != 3 {
			t.Errorf("%d of 3 are woken when a poll fails", others.Load())
		}
	})
}

// Subscriptions that nobody waits for any more are forgotten in time.
func TestWaitsForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(fakePoll).waits()
		for i := range 100 {
			var woken atomic.Int32
			start(t, w, "s"+strconv.Itoa(i), 1, 1, &woken)()
		}
		time.Sleep(2 * rememberFor)
		for i := range 100 {
			w.join("new" + strconv.Itoa(i)).leave()
		}
		if n := len(w.subs); n > 110 {
			t.Errorf("%d subscriptions are remembered", n)
		}
	})
}

// TestWaitsSlowLook has a look take long, since it had to wait for a connection: the next is not put off for minutes.
func TestWaitsSlowLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakePoll{slow: 3 * time.Second}
		w := f.waits()
		w.setListening(true)
		var woken atomic.Int32
		stop := start(t, w, "s", 1, 1, &woken)
		defer stop()
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		f.slow, f.ready, f.base = 0, true, 1 // by a process that notifies nobody
		f.mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if woken.Load() != 1 {
			t.Error("who waits was not woken within 5 seconds")
		}
	})
}

// TestWaitsNewWhileResting has a subscription come when looks rest, because they take long: it has to be looked at all the same,
// since before its topic is known nobody wakes it.
func TestWaitsNewWhileResting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakePoll{slow: 50 * time.Millisecond}
		w := f.waits()
		w.setListening(true)
		var woken, wokenNew atomic.Int32
		defer start(t, w, "s", 1, 1, &woken)()
		time.Sleep(100 * time.Millisecond)
		w.mu.Lock()
		resting := time.Until(w.restUntil)
		w.mu.Unlock()
		if resting < time.Second {
			t.Fatalf("looks rest for %v", resting)
		}
		defer w.join("new").leave()
		w.changed("new") // plans a look before anybody waits
		time.Sleep(time.Millisecond)
		defer start(t, w, "new", 1, 1, &wokenNew)()
		w.published("t", 1) // it may have been meant for both
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if woken.Load() != 1 || wokenNew.Load() != 1 {
			t.Errorf("woken %d and %d, want 1 and 1", woken.Load(), wokenNew.Load())
		}
	})
}

// TestWaitsPutOffWake has a wake for nothing put off the next, which then comes without a look: looks may rest.
func TestWaitsPutOffWake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fakePoll{slow: 50 * time.Millisecond}
		w := f.waits()
		w.setListening(true)
		m := w.join("s")
		defer m.leave()
		for range 5 { // the first makes the topic known
			go w.published("t", 1)
			if _, err := m.wait(t.Context(), 1, time.Hour); err != nil {
				t.Fatal(err)
			}
			m.claimed(0, 1)
			time.Sleep(100 * time.Millisecond)
		}
		began := time.Now()
		for range 3 {
			w.published("t", 1)
			if ok, err := m.wait(t.Context(), 1, time.Hour); !ok || err != nil {
				t.Fatal(ok, err)
			}
			m.claimed(0, 1)
		}
		if took := time.Since(began); took < fruitlessFrom || took > 3*fruitlessUpTo {
			t.Errorf("three wakes for nothing took %v, want them put off for %v to %v each", took, fruitlessFrom, fruitlessUpTo)
		}
	})
}

// TestRest has somebody publish while a receiver rests after an error: the database is there again.
func TestRest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := new(fakePoll).waits()
		var woken atomic.Int32
		start(t, w, "s", 1, 1, &woken)() // its topic is known then
		taker := &brokerTaker{member: w.join("s")}
		defer taker.leave()
		for _, tt := range []struct{ published, want time.Duration }{
			{2 * time.Second, 2 * time.Second},
			{100 * time.Millisecond, time.Second}, // an eighth of 8 seconds, in any case
			{time.Hour, 8 * time.Second},
		} {
			began := time.Now()
			timer := time.AfterFunc(tt.published, func() { w.published("t", 1) })
			taker.rest(t.Context(), 8*time.Second)
			if took := time.Since(began); took != tt.want {
				t.Errorf("with a publish after %v it rested for %v, want %v", tt.published, took, tt.want)
			}
			timer.Stop()
		}
	})
}

// TestBreathe has calls of a receiver take longer and longer: it leaves the server alone for as long, and for longer where it is busy.
func TestBreathe(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	taker := &brokerTaker{}
	for _, tt := range []struct{ took, want time.Duration }{
		{20 * ms, 5 * ms}, // of a server that is far away
		{2 * ms, 2 * ms},
		{3 * ms, 3 * ms},                                          // now 2 ms is what the fastest takes
		{time.Second, 5 * ms}, {8 * ms, 5 * ms}, {8 * ms, 5 * ms}, // and some others can take longer
		{8 * ms, 10 * ms}, // but not all of them
		{time.Second, 10 * ms}, {time.Second, 10 * ms}, {time.Second, 10 * ms},
		{time.Second, 40 * ms},
	} {
		if got := taker.breathe(tt.took).Round(ms); got != tt.want {
			t.Errorf("after a call of %v it rests for %v, want %v", tt.took, got, tt.want)
		}
	}
	for range 10_000 {
		taker.breathe(20 * ms)
	}
	if got := taker.breathe(20 * ms); got != 5*ms {
		t.Errorf("it does not forget how fast calls were: it rests for %v, want 5ms", got)
	}
}

// TestWaitsChangedBefore has something become due before anybody waits, as when a receiver nacks: the look that is planned then is
// made as soon as somebody does, and not with the next tick.
func TestWaitsChangedBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := new(fakePoll)
		w := f.waits()
		w.setListening(true)
		var other, woken atomic.Int32
		defer start(t, w, "other", 1, 1, &other)()  // the poll goes on
		start(t, w, "s", 1, 1, new(atomic.Int32))() // the topic is known
		time.Sleep(time.Minute)
		w.ticked(0) // the next is in most of a second
		f.mu.Lock()
		f.ready = true
		f.mu.Unlock()
		w.changed("s")
		time.Sleep(time.Millisecond)
		defer start(t, w, "s", 1, 1, &woken)()
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if woken.Load() != 1 {
			t.Error("who waits was not woken within 100 ms")
		}
	})
}
