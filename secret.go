package fastpubsub

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"
)

// A Secret is text that must not be seen: printed, logged or encoded it is "[secret]", unless it is the key of a map in JSON.
// string(secret) is the text itself.
type Secret string

const hidden = "[secret]"

// NewSecret returns 32 hexadecimal digits from the system's source of randomness, 128 bits.
func NewSecret() Secret {
	b := make([]byte, 16)
	rand.Read(b) // which never fails
	return Secret(hex.EncodeToString(b))
}

// Format implements [fmt.Formatter] for all verbs.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// String implements [fmt.Stringer].
func (Secret) String() string { return hidden }

// LogValue implements [slog.LogValuer].
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements [encoding.TextMarshaler].
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// A secretHash is what is stored of a secret: the result of argon2id, and what it was computed with.
type secretHash struct {
	memory  uint32 // KiB
	passes  uint32
	threads uint8
	salt    []byte
	tag     []byte
}

// Those of new hashes: RFC 9106, section 4, for machines that have less memory than 2 GiB to spare.
const (
	hashMemory  = 64 << 10
	hashPasses  = 3
	hashThreads = 4
	saltBytes   = 16
	tagBytes    = 32
)

// Limits of hashes from elsewhere. They leave room for the defaults of other libraries, past and present, and bound what one
// computation may cost.
const (
	maxHashMemory  = 128 << 10
	maxHashPasses  = 10
	maxHashThreads = 16
	minSaltBytes   = 8
	maxSaltBytes   = 64
	minTagBytes    = 16
	maxTagBytes    = 64
)

var errSecretHash = fmt.Errorf("must be a hash of argon2id like $argon2id$v=19$m=65536,t=3,p=4$SALT$HASH, with m up to %d, t up to %d, p up to %d, "+
	"a salt of %d to %d bytes and a hash of %d to %d", maxHashMemory, maxHashPasses, maxHashThreads, minSaltBytes, maxSaltBytes, minTagBytes, maxTagBytes)

var hashEncoding = base64.RawStdEncoding.Strict()

// parseSecretHash reads what String writes, within the limits, and nothing else. Its error does not repeat the text.
func parseSecretHash(text string) (secretHash, error) {
	var h secretHash
	rest, isArgon2id := strings.CutPrefix(text, "$argon2id$v=19$")
	parts := strings.Split(rest, "$")
	if !isArgon2id || len(parts) != 3 {
		return secretHash{}, errSecretHash
	}
	params := strings.Split(parts[0], ",")
	if len(params) != 3 {
		return secretHash{}, errSecretHash
	}
	memory, okM := hashParam(params[0], "m=", maxHashMemory)
	passes, okT := hashParam(params[1], "t=", maxHashPasses)
	threads, okP := hashParam(params[2], "p=", maxHashThreads)
	if !okM || !okT || !okP || memory < 8*threads { // argon2 itself needs that much
		return secretHash{}, errSecretHash
	}
	h.memory, h.passes, h.threads = memory, passes, uint8(threads)
	var errSalt, errTag error
	h.salt, errSalt = hashEncoding.DecodeString(parts[1])
	h.tag, errTag = hashEncoding.DecodeString(parts[2])
	if errSalt != nil || len(h.salt) < minSaltBytes || len(h.salt) > maxSaltBytes ||
		errTag != nil || len(h.tag) < minTagBytes || len(h.tag) > maxTagBytes ||
		strings.ContainsAny(parts[1]+parts[2], "\r\n") { // which the decoder passes over
		return secretHash{}, errSecretHash
	}
	return h, nil
}

// hashParam reads a number from 1 to highest.
func hashParam(text, name string, highest uint32) (uint32, bool) {
	digits, ok := strings.CutPrefix(text, name)
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), ok && err == nil && n >= 1 && n <= uint64(highest) && digits[0] != '0'
}

// String is the PHC string format.
func (h secretHash) String() string {
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", h.memory, h.passes, h.threads,
		hashEncoding.EncodeToString(h.salt), hashEncoding.EncodeToString(h.tag))
}

// nobodysHash is compared with where there is no hash, so that it takes as long. No secret is known that has it.
var nobodysHash = secretHash{memory: hashMemory, passes: hashPasses, threads: hashThreads, salt: make([]byte, saltBytes), tag: make([]byte, tagBytes)}

// A hasher computes hashes, one or two at once: each takes 64 MiB, and four cores if it gets them, for some 0.1 seconds. More at
// once would give no more of them, and on two cores two together kept everybody else waiting ten times as long.
type hasher struct {
	running chan struct{} // has an element for each computation
	compute func(secret []byte, h secretHash) []byte
}

const (
	maxHashesAtOnce = 2
	hashWait        = 5 * time.Second
)

func newHasher(atOnce int) *hasher {
	return &hasher{running: make(chan struct{}, atOnce), compute: func(secret []byte, h secretHash) []byte {
		return argon2.IDKey(secret, h.salt, h.passes, h.memory, h.threads, uint32(len(h.tag)))
	}}
}

// hashesAtOnce is how many computations this many cores are enough for.
func hashesAtOnce(cores int) int { return min(max(cores/hashThreads, 1), maxHashesAtOnce) }

// run computes the hash of a secret with the parameters and the length of h. It waits for its turn for up to 5 seconds and
// while ctx lasts; what has begun is finished.
func (r *hasher) run(ctx context.Context, secret Secret, h secretHash) ([]byte, error) {
	if err := ctx.Err(); err != nil { // select would choose either
		return nil, err
	}
	timer := time.NewTimer(hashWait)
	defer timer.Stop()
	select {
	case r.running <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, fmt.Errorf("check a secret: %w", ErrBusy)
	}
	defer func() { <-r.running }()
	return r.compute([]byte(secret), h), nil
}

// hash returns the hash of a new secret.
func (r *hasher) hash(ctx context.Context, secret Secret) (secretHash, error) {
	h := nobodysHash
	h.salt = make([]byte, saltBytes)
	rand.Read(h.salt) // which never fails
	tag, err := r.run(ctx, secret, h)
	h.tag = tag
	return h, err
}

// verify reports whether a secret has the hash. It computes once, whatever comes out.
func (r *hasher) verify(ctx context.Context, secret Secret, h secretHash) (bool, error) {
	tag, err := r.run(ctx, secret, h)
	return err == nil && subtle.ConstantTimeCompare(tag, h.tag) == 1, err
}
