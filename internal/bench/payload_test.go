package bench

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"testing"
)

func TestPayload(t *testing.T) {
	t.Parallel()
	for _, size := range []int{minPayloadBytes, minPayloadBytes + 1, 199, 200, 201, 1000, 65_537, 1_000_000} {
		p := newPayload(rand.NewChaCha8([32]byte{7}), size)
		setNumber(p, 0x1234abcdef)
		setSent(p, 1_900_000_000_123_456_789)
		setMatch(p, true)
		if len(p) != size {
			t.Errorf("size %d: %d bytes", size, len(p))
		}
		var v struct{ Number, Sent, Match, Fixed, Random string }
		if err := json.Unmarshal(p, &v); err != nil {
			t.Fatalf("size %d: %v\n%s", size, err, p)
		}
		if v.Number != "0000001234abcdef" || v.Match != "y" {
			t.Errorf("size %d: number %q, match %q", size, v.Number, v.Match)
		}
		if number(p) != 0x1234abcdef || sent(p) != 1_900_000_000_123_456_789 {
			t.Errorf("size %d: read back %x, %d", size, number(p), sent(p))
		}
		if want := size / 2; size >= 200 && len(v.Random) != want {
			t.Errorf("size %d: %d random characters, want %d", size, len(v.Random), want)
		}
		if err := checkPayload(p, size); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
		if checkPayload(p, size+1) == nil || checkPayload(bytes.ToUpper(p), size) == nil {
			t.Errorf("size %d: a changed payload is not noticed", size)
		}
	}
}

func TestBatchesAreDeterministic(t *testing.T) {
	t.Parallel()
	take := func(seed uint64, publisher int) []byte {
		b := newBatches(seed, publisher, 8, 10, 200)
		var all []byte
		for i := range int64(2 * len(b.calls)) {
			for _, msg := range b.take(10*i, 10, 0.5, 0) {
				all = append(all, msg.Payload...)
			}
		}
		return all
	}
	first := take(1, 0)
	if !bytes.Equal(first, take(1, 0)) {
		t.Error("the same seed gives other payloads")
	}
	if bytes.Equal(first, take(2, 0)) || bytes.Equal(first, take(1, 1)) {
		t.Error("another seed or publisher gives the same payloads")
	}
}

func TestBatchesAreBounded(t *testing.T) {
	t.Parallel()
	b := newBatches(1, 0, 100, 1, 1_000_000)
	if len(b.calls) != 1 {
		t.Errorf("%d calls' worth of a megabyte each for one of 100 publishers", len(b.calls))
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, share := range []float64{0, 0.001, 0.01, 0.3, 1} {
		n := 0
		for i := range int64(100_000) {
			if matches(i, share) {
				n++
			}
		}
		if want := int(share * 100_000); n < want-1 || n > want+1 {
			t.Errorf("share %v: %d of 100,000 match", share, n)
		}
	}
}
