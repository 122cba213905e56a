package fastpubsub

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// send acks and nacks, many at once, until all handlers have returned and everything is sent. It returns how many were not when ctx
// ended.
func (r *receiver) send(ctx context.Context, handled <-chan struct{}) (unsent int, err error) {
	retry := retryFrom
	last := false
	for {
		if !last {
			select {
			case <-r.results:
				last = r.gather(handled)
			case <-handled:
				last = true
			}
		}
		acks, nacks := r.takeResults(last)
		if len(acks) == 0 && len(nacks) == 0 {
			if last {
				return 0, nil
			}
			continue
		}
		acked, err := r.sendOnce(ctx, acks, nacks)
		if err == nil {
			retry = retryFrom
			nudge(r.room)
			continue
		}
		if acked {
			acks = nil
		}
		r.putBack(acks, nacks)
		if ctx.Err() != nil || errors.Is(err, ErrNotFound) {
			r.mu.Lock()
			unsent := len(r.acks) + r.pending
			r.mu.Unlock()
			r.stop(err)
			if errors.Is(err, ErrNotFound) { // nobody misses them
				<-handled
				return 0, nil
			}
			return unsent, err
		}
		if fatal(err) { // perhaps the rest can be sent all the same, until time is over
			r.stop(err)
		}
		r.warn("acks could not be sent", err)
		_ = sleep(ctx, retry/2+rand.N(retry))
		retry = min(2*retry, retryUpTo)
	}
}

// gather waits a moment for more.
func (r *receiver) gather(handled <-chan struct{}) (last bool) {
	timer := time.NewTimer(ackGather)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.enough:
	case <-handled:
		return true
	}
	return false
}

// takeResults takes what is to be sent now. Nacks wait somewhat longer than acks, to be more.
func (r *receiver) takeResults(all bool) ([]ID, map[nackKind][]Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.acks), maxAckIDs)
	acks := r.acks[:n:n]
	if r.acks = r.acks[n:]; len(r.acks) == 0 {
		r.acks = nil
	}
	var nacks map[nackKind][]Delivery
	if r.pending > 0 && (all || r.pending >= gatherEnough || time.Since(r.oldest) >= nackGather) {
		nacks = r.nacks
		r.nacks, r.pending = map[nackKind][]Delivery{}, 0
	}
	if r.pending == 0 {
		r.oldest = time.Time{}
	}
	if len(r.acks)+r.pending > 0 {
		nudge(r.results)
	}
	return acks, nacks
}

func (r *receiver) putBack(acks []ID, nacks map[nackKind][]Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acks = append(acks, r.acks...)
	for kind, deliveries := range nacks {
		r.nacks[kind] = append(r.nacks[kind], deliveries...)
		r.pending += len(deliveries)
	}
	if len(r.acks)+r.pending > 0 {
		r.oldest = time.Now()
		nudge(r.results)
	}
}

func (r *receiver) sendOnce(ctx context.Context, acks []ID, nacks map[nackKind][]Delivery) (acked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if len(acks) > 0 {
		if _, err := r.from.Ack(ctx, r.id, acks); err != nil {
			return false, err
		}
	}
	if len(nacks) == 0 {
		return true, nil
	}
	return true, r.from.nackAll(ctx, r.id, nacks)
}
