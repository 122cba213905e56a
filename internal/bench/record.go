package bench

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// ErrMismatch means that what was consumed is not what was published: messages are missing, came twice, or were changed.
var ErrMismatch = errors.New("consumed is not what was published")

// A stretch is the numbers [lo, hi) that one call returned, and when.
type stretch struct {
	lo, hi int64
	at     int64 // nanoseconds
}

// A record is what one consumer got, in the order in which it came. Neighbours from one call share a stretch, so that
// measuring costs little.
type record struct {
	stretches []stretch
}

func (r *record) add(number, at int64) {
	if n := len(r.stretches); n > 0 {
		if last := &r.stretches[n-1]; last.hi == number && last.at == at {
			last.hi++
			return
		}
	}
	r.stretches = append(r.stretches, stretch{number, number + 1, at})
}

// verify returns ErrMismatch, with what is wrong, unless the records have each of the numbers [0, total) that is wanted
// exactly once, and nothing else.
func verify(records []*record, total int64, wanted func(number int64) bool) error {
	var all []stretch
	for _, r := range records {
		all = append(all, r.stretches...)
	}
	slices.SortFunc(all, func(a, b stretch) int { return cmp.Compare(a.lo, b.lo) })

	var missing, twice, foreign int64
	next := int64(0)
	miss := func(to int64) {
		for ; next < to; next++ {
			if wanted(next) {
				missing++
			}
		}
	}
	for _, s := range all {
		miss(min(s.lo, total))
		for n := s.lo; n < s.hi; n++ {
			switch {
			case n < 0 || n >= total || !wanted(n):
				foreign++
			case n < next:
				twice++
			}
			next = max(next, n+1)
		}
	}
	miss(total)
	if missing+twice+foreign > 0 {
		return fmt.Errorf("%w: of %d messages %d are missing, %d came twice, %d should not have come",
			ErrMismatch, total, missing, twice, foreign)
	}
	return nil
}

func everyNumber(int64) bool { return true }
