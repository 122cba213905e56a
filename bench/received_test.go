package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"math/rand/v2"

	"github.com/fastpubsub/fastpubsub/internal/bench"
)

func TestAudit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		got  []int64 // of group 0; group 1 gets 0, 1 and 2
		want Audit
	}{
		{"All", []int64{2, 0, 1}, Audit{Published: 6}},
		{"Missing", []int64{2}, Audit{Published: 6, Missing: 2}},
		{"Twice", []int64{0, 1, 1, 2, 1}, Audit{Published: 6, Duplicates: 2}},
		{"Foreign", []int64{0, 1, 2, 3, -1, biggestNumber}, Audit{Published: 6, Foreign: 3}},
		{"None", nil, Audit{Published: 6, Missing: 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newReceived(2, time.Second)
			for _, n := range test.got {
				r.note(0, n, time.Millisecond, time.Now())
			}
			for n := range int64(3) {
				r.note(1, n, time.Millisecond, time.Now())
			}
			if got := r.audit(3); got != test.want {
				t.Errorf("audit is %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestReceivedFinishes(t *testing.T) {
	t.Parallel()
	isOver := func(r *received) bool {
		select {
		case <-r.all():
			return true
		default:
			return false
		}
	}
	r := newReceived(1, time.Second)
	r.note(0, 0, 0, time.Now())
	r.note(0, 0, 0, time.Now())
	r.expect(2)
	if isOver(r) {
		t.Error("a duplicate counts for what is missing")
	}
	r.note(0, 1, 0, time.Now())
	if !isOver(r) {
		t.Error("all have come and nobody is told")
	}
	r.forget()
	r.note(0, 2, 0, time.Now())
	if isOver(r) {
		t.Error("it is over though nothing is expected")
	}
	r.expect(3)
	if !isOver(r) {
		t.Error("all had come before they were expected")
	}
}

func TestMember(t *testing.T) {
	t.Parallel()
	p, err := bench.NewPayload(rand.NewChaCha8([32]byte{}), payloadBytes)
	if err != nil {
		t.Fatal(err)
	}
	bench.StampPayload(p, 1234, 5678)
	if n, err := member(p, `"number":`); n != 1234 || err != nil {
		t.Errorf("number is %d, %v", n, err)
	}
	if n, err := member(p, `"sent":`); n != 5678 || err != nil {
		t.Errorf("sent is %d, %v", n, err)
	}
	if n, err := member([]byte(`{"a": 1, "number": "00000000000000ff"}`), `"number":`); n != 255 || err != nil {
		t.Errorf("as jsonb writes it, number is %d, %v", n, err)
	}
	for _, bad := range []string{``, `{}`, `{"number":`, `{"number":"12"}`, `{"number":"zzzzzzzzzzzzzzzz"}`, `{"number":12345678901234567}`} {
		if _, err := member([]byte(bad), `"number":`); err == nil {
			t.Errorf("%s has a number", bad)
		}
	}
}

func TestTake(t *testing.T) {
	t.Parallel()
	p := &publishing{batch: 3, copies: 2, messages: 7, first: 100}
	var got []int64
	for {
		first, n := p.take()
		if n == 0 {
			break
		}
		got = append(got, first, int64(n))
	}
	if want := []int64{100, 6, 106, 6, 112, 2}; !slices.Equal(got, want) {
		t.Errorf("numbers are %v, want %v", got, want)
	}
	endless := &publishing{batch: 3, copies: 1}
	for i := range int64(3) {
		if first, n := endless.take(); first != 3*i || n != 3 {
			t.Errorf("take returns %d, %d", first, n)
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		o       options
		wantErr string
	}{
		{"OK", options{Clients: 8, Window: 100}, ""},
		{"Quick", options{Clients: 8, Window: 100, Quick: true}, ""},
		{"Clients", options{Window: 100}, "clients must be 1 to 100, not 0"},
		{"Duration", options{Clients: 8, Window: 1, Pinned: time.Millisecond}, "pinned must be 100ms to 1h"},
		{"System", options{Clients: 8, Window: 1, Systems: []string{"kafka"}}, "system must be one of floor, fastpubsub,"},
		{"Workload", options{Clients: 8, Window: 1, Workloads: []string{"all"}}, "workload must be one of publish,"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := test.o.complete()
			if test.wantErr == "" && err != nil || test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)) {
				t.Errorf("error is %v, want %q", err, test.wantErr)
			}
		})
	}
}
