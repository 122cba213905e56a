package bench

import (
	"errors"
	"strings"
	"testing"
)

func TestVerify(t *testing.T) {
	t.Parallel()
	odd := func(n int64) bool { return n%2 == 1 }
	for _, test := range []struct {
		reason string
		got    [][]int64
		total  int64
		wanted func(int64) bool
		want   string // in the error; empty for none
	}{
		{"nothing of nothing", nil, 0, everyNumber, ""},
		{"all, over two consumers", [][]int64{{4, 5, 0, 1}, {2, 3}}, 6, everyNumber, ""},
		{"what matches", [][]int64{{5}, {1, 3}}, 6, odd, ""},
		{"the last is missing", [][]int64{{0, 1}}, 3, everyNumber, "1 are missing, 0 came twice, 0 should"},
		{"all are missing", nil, 3, everyNumber, "3 are missing, 0 came twice, 0 should"},
		{"one in the middle is missing", [][]int64{{0}, {2}}, 3, everyNumber, "1 are missing, 0 came twice, 0 should"},
		{"twice with the same consumer", [][]int64{{0, 1, 1, 2}}, 3, everyNumber, "0 are missing, 1 came twice, 0 should"},
		{"twice inside a stretch", [][]int64{{0, 1, 2}, {1}}, 3, everyNumber, "0 are missing, 1 came twice, 0 should"},
		{"one lost and one doubled", [][]int64{{0, 1}, {1}}, 3, everyNumber, "1 are missing, 1 came twice, 0 should"},
		{"beyond what was published", [][]int64{{0, 1, 2, 7}}, 3, everyNumber, "0 are missing, 0 came twice, 1 should"},
		{"what does not match", [][]int64{{0, 1}}, 2, odd, "0 are missing, 0 came twice, 1 should"},
	} {
		var records []*record
		for _, numbers := range test.got {
			r := new(record)
			for _, n := range numbers {
				r.add(n, 0)
			}
			records = append(records, r)
		}
		err := verify(records, test.total, test.wanted)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.reason, err)
		case test.want != "" && (!errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error is %v, want %q", test.reason, err, test.want)
		}
	}
}
