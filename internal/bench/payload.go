package bench

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/fastpubsub/fastpubsub"
)

// A payload is a JSON object of an exact size. Half of it are the same bytes in every payload, the other half is base64 of
// random bytes, so that compression has as much to do as with real messages. The parts that change from call to call
// have a fixed width and place, so that they are written and read in place:
//
//	{"number":"00000000000004d2","sent":"18a3c1f0a2b3c4d5","match":"n","fixed":"...","random":"..."}
const (
	partNumber = `{"number":"`
	partSent   = `","sent":"`
	partMatch  = `","match":"`
	partFixed  = `","fixed":"`
	partRandom = `","random":"`
	partEnd    = `"}`

	hexDigits = 16
	numberAt  = len(partNumber)
	sentAt    = numberAt + hexDigits + len(partSent)
	matchAt   = sentAt + hexDigits + len(partMatch)

	// minPayloadBytes is what the fixed parts take, and some room for random characters.
	minPayloadBytes = 112
)

// filterJSON matches the payloads that setMatch marked.
const filterJSON = `{"match":["y"]}`

const filler = "a customer in the north ordered two of the usual, to be delivered on a working day before noon; "

// newPayload returns a payload of size bytes, at least minPayloadBytes, with the number 0, no time and no match.
func newPayload(rng *rand.ChaCha8, size int) []byte {
	zeros := strings.Repeat("0", hexDigits)
	p := make([]byte, 0, size)
	p = append(p, partNumber+zeros+partSent+zeros+partMatch+"n"+partFixed...)

	room := size - len(p) - len(partRandom) - len(partEnd)
	random := min(size/2, room)
	for fixed := room - random; fixed > 0; {
		n := min(fixed, len(filler))
		p = append(p, filler[:n]...)
		fixed -= n
	}
	p = append(p, partRandom...)

	raw := make([]byte, base64.RawURLEncoding.DecodedLen(random)+3)
	_, _ = rng.Read(raw) // never fails
	p = append(p, base64.RawURLEncoding.EncodeToString(raw)[:random]...)
	return append(p, partEnd...)
}

func setNumber(p []byte, number int64) { putHex(p[numberAt:], number) }
func setSent(p []byte, nanos int64)    { putHex(p[sentAt:], nanos) }

func setMatch(p []byte, match bool) {
	p[matchAt] = 'n'
	if match {
		p[matchAt] = 'y'
	}
}

func number(p []byte) int64 { return getHex(p[numberAt:]) }
func sent(p []byte) int64   { return getHex(p[sentAt:]) }

// checkPayload says whether p can be one of ours: the size and what stands around the places that are read.
func checkPayload(p []byte, size int) error {
	if len(p) != size || string(p[:numberAt]) != partNumber || string(p[sentAt-len(partSent):sentAt]) != partSent {
		return fmt.Errorf("%w: a payload of %d bytes came back that was not published", ErrMismatch, len(p))
	}
	return nil
}

func putHex(p []byte, v int64) {
	const digits = "0123456789abcdef"
	for i := hexDigits - 1; i >= 0; i-- {
		p[i] = digits[v&15]
		v >>= 4
	}
}

func getHex(p []byte) int64 {
	var v int64
	for _, c := range p[:hexDigits] {
		v = v<<4 | int64(c&15+c>>6*9) // '0' is 0x30, 'a' is 0x61
	}
	return v
}

// matches spreads a share of all numbers evenly.
func matches(number int64, share float64) bool {
	return int64(float64(number+1)*share) > int64(float64(number)*share)
}

// A batches is a publisher's supply of messages, made before the clock runs: some calls' worth, used in turn.
type batches struct {
	calls [][]fastpubsub.NewMessage
	next  int
}

// supplyBytes bounds the payloads that all publishers of a phase hold. It is more than a processor caches and less than
// anybody would miss.
const supplyBytes = 32 << 20

// newBatches returns the supply of one of several publishers. The same seed gives the same payloads.
func newBatches(seed uint64, publisher, publishers, batch, size int) *batches {
	var key [32]byte
	for i := range 8 {
		key[i], key[8+i] = byte(seed>>(8*i)), byte(publisher>>(8*i))
	}
	rng := rand.NewChaCha8(key)
	n := min(max(supplyBytes/(publishers*batch*size), 1), max(2048/batch, 4))
	b := &batches{calls: make([][]fastpubsub.NewMessage, n)}
	for i := range b.calls {
		b.calls[i] = make([]fastpubsub.NewMessage, batch)
		for j := range b.calls[i] {
			b.calls[i][j].Payload = newPayload(rng, size)
		}
	}
	return b
}

// take returns the next call's messages, n of them, numbered from first on.
func (b *batches) take(first int64, n int, share float64, sentNanos int64) []fastpubsub.NewMessage {
	msgs := b.calls[b.next][:n]
	b.next = (b.next + 1) % len(b.calls)
	for i := range msgs {
		p := msgs[i].Payload
		setNumber(p, first+int64(i))
		setSent(p, sentNanos)
		setMatch(p, matches(first+int64(i), share))
	}
	return msgs
}
