package fastpubsub

import "context"

// ParseSecretHash returns a hash as it is written.
func ParseSecretHash(text string) (string, error) {
	h, err := parseSecretHash(text)
	return h.String(), err
}

// OnHash makes a broker call f at the beginning of each computation of a secret's hash.
func (b *Broker) OnHash(f func(memory uint32)) {
	compute := b.hasher.compute
	b.hasher.compute = func(secret []byte, h secretHash) []byte {
		f(h.memory)
		return compute(secret, h)
	}
}

// NewHasher returns what checks secrets, with another computation.
func NewHasher(atOnce int, compute func() []byte) func(ctx context.Context) (bool, error) {
	r := newHasher(atOnce)
	r.compute = func([]byte, secretHash) []byte { return compute() }
	return func(ctx context.Context) (bool, error) { return r.verify(ctx, "secret", nobodysHash) }
}

// HashWait is how long one waits for others.
const HashWait = hashWait

// HashesAtOnce is how many secrets are checked at once on so many cores.
func HashesAtOnce(cores int) int { return hashesAtOnce(cores) }
