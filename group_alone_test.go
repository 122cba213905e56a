package fastpubsub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A sent is a statement of a group; the test says what becomes of it.
type sent struct {
	topic    string
	payloads []string
	answer   chan error // nil is success
}

// idOf is an id in which a payload can be seen.
func idOf(payload string) (id ID) {
	copy(id[:], payload)
	return id
}

// newTestGroup returns a group whose statements the test gets.
func newTestGroup() (*group, chan sent) {
	statements := make(chan sent)
	return newGroup(func(ctx context.Context, topicID string, payloads []string, _ []*string) ([]ID, error) {
		s := sent{topicID, payloads, make(chan error)}
		select {
		case statements <- s:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		select {
		case err := <-s.answer:
			if err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		ids := make([]ID, len(payloads))
		for i, p := range payloads {
			ids[i] = idOf(p)
		}
		return ids, nil
	}), statements
}

// A call that finds none on its way goes at once: not even a timer of a nanosecond is between. That is so after others, too.
func TestLonePublishIsNotDelayed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, statements := newTestGroup()
		begun := time.Now()
		for i := range 3 {
			go func() {
				s := <-statements
				s.answer <- nil
			}()
			payload := fmt.Sprint(i)
			if ids, err := g.publish(t.Context(), "t", []string{payload}, nil); err != nil || !slices.Equal(ids, []ID{idOf(payload)}) {
				t.Errorf("published %v, %v", ids, err)
			}
		}
		// One behind another, which ends, and then one alone.
		first := make(chan error)
		go func() {
			_, err := g.publish(t.Context(), "t", []string{"first"}, nil)
			first <- err
		}()
		running := <-statements
		second := make(chan error)
		go func() {
			_, err := g.publish(t.Context(), "t", []string{"second"}, nil)
			second <- err
		}()
		synctest.Wait()
		running.answer <- nil
		s := <-statements
		s.answer <- nil
		if err := errors.Join(<-first, <-second); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		go func() {
			s := <-statements
			s.answer <- nil
		}()
		if _, err := g.publish(t.Context(), "t", []string{"alone"}, nil); err != nil {
			t.Error(err)
		}
		if waited := time.Since(begun); waited != 0 {
			t.Errorf("calls waited for %v", waited)
		}
	})
}

// Calls that share a statement share its outcome; others have their own.
func TestGroupedErrorsAreNotMixedUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, statements := newTestGroup()
		type result struct {
			ids []ID
			err error
		}
		publish := func(ctx context.Context, topic string, payloads ...string) chan result {
			c := make(chan result, 1)
			go func() {
				ids, err := g.publish(ctx, topic, payloads, nil)
				c <- result{ids, err}
			}()
			synctest.Wait()
			return c
		}
		want := func(who string, c chan result, wantErr error, payloads ...string) {
			t.Helper()
			r := <-c
			var ids []ID
			for _, p := range payloads {
				ids = append(ids, idOf(p))
			}
			if !errors.Is(r.err, wantErr) || !slices.Equal(r.ids, ids) {
				t.Errorf("%s got %v, %v, want %v, %v", who, r.ids, r.err, ids, wantErr)
			}
		}
		errA, errB := errors.New("a"), errors.New("b")
		cancelled, cancel := context.WithCancel(t.Context())

		a := publish(t.Context(), "t", "a")
		onlyA := <-statements
		b := publish(t.Context(), "t", "b1", "b2")
		c := publish(cancelled, "t", "c")
		d := publish(t.Context(), "t", "d")
		other := publish(t.Context(), "other", "o")
		onlyOther := <-statements
		onlyA.answer <- errA
		want("the first", a, errA)
		three := <-statements
		if !slices.Equal(three.payloads, []string{"b1", "b2", "c", "d"}) || three.topic != "t" {
			t.Fatalf("statement %+v", three)
		}
		cancel()
		want("who was cancelled", c, context.Canceled)
		e := publish(t.Context(), "t", "e")
		three.answer <- nil
		want("the second", b, nil, "b1", "b2")
		want("the fourth", d, nil, "d")
		f := <-statements
		f.answer <- errB
		want("the last", e, errB)
		onlyOther.answer <- nil
		want("another topic", other, nil, "o")
		synctest.Wait()
		if len(g.running)+len(g.waiting) > 0 {
			t.Errorf("the group still has %v and %v", g.running, g.waiting)
		}
	})
}
