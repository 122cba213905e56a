package fastpubsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub/store"
)

// These errors are returned, wrapped, by [Broker.IssueToken] and [Broker.CheckToken].
var (
	// ErrNoTokens means that [Config] has no key for tokens.
	ErrNoTokens = errors.New("the broker has no key for tokens")
	// ErrCredentials means that there is no such client, that it is not active, or that the secret is another: which of them
	// is not told.
	ErrCredentials = errors.New("invalid client credentials")
	// ErrScope means that a token was asked for with scopes that the client does not have.
	ErrScope = errors.New("the client does not have the scope")
	// ErrToken means that a token is not one, or has expired, or has been revoked.
	ErrToken = errors.New("invalid access token")
)

// TokenSettings say how tokens are made. They are JSON Web Tokens, and those of other settings are refused.
type TokenSettings struct {
	// Key signs tokens, by HMAC. At least 16 bytes, as [NewSecret] makes them; the same in all processes that are to accept
	// each other's tokens. Without one there are no tokens.
	Key Secret

	// Algorithm is HS256, HS384 or HS512; default HS256. Tokens of another one are refused, whatever they say.
	Algorithm string

	// Lifetime is how long a token is good, in whole seconds, up to 366 days. Default 30 minutes.
	Lifetime time.Duration
}

const (
	minKeyBytes      = 16
	maxTokenLifetime = 366 * 24 * time.Hour

	// maxTokenBytes is more than a token with the longest scopes has.
	maxTokenBytes = 8 << 10
)

func (s TokenSettings) orDefaults() TokenSettings {
	if s.Algorithm == "" {
		s.Algorithm = jwt.SigningMethodHS256.Alg()
	}
	if s.Lifetime == 0 {
		s.Lifetime = 30 * time.Minute
	}
	return s
}

func (s TokenSettings) check(p *problems) {
	if s.Key != "" && len(s.Key) < minKeyBytes {
		p.add("tokens.key", "string_too_short", "must have at least %d bytes, not %d", minKeyBytes, len(s.Key))
	}
	switch s.orDefaults().Algorithm {
	case jwt.SigningMethodHS256.Alg(), jwt.SigningMethodHS384.Alg(), jwt.SigningMethodHS512.Alg():
	default:
		p.add("tokens.algorithm", "literal_error", "must be HS256, HS384 or HS512, not %q", s.Algorithm)
	}
	if lifetime := s.orDefaults().Lifetime; lifetime < time.Second || lifetime > maxTokenLifetime || lifetime%time.Second != 0 {
		p.add("tokens.lifetime", "value_error", "must be whole seconds, up to %v, not %v", maxTokenLifetime, lifetime)
	}
}

// claims are what a token says. Their names are those of RFC 7519 and RFC 8693, but for the version.
type claims struct {
	jwt.RegisteredClaims
	Scope   string `json:"scope"`
	Version int    `json:"ver"`
}

// A Token lets its bearer use the REST API in the name of a client.
type Token struct {
	AccessToken Secret
	Lifetime    time.Duration // from now on
	Scopes      Scopes        // that it is good for
}

// IssueToken returns a token to who knows the id and the secret of an active client. It is good for all scopes of the client, or
// for those of scopes, unless that is nil. Checking the secret takes some 0.1 seconds and 64 MiB, whatever comes out of it; two
// are checked at once at most, and one on fewer than eight cores. No connection to the database is held meanwhile.
//
// It returns ErrCredentials, ErrScope, ErrNoTokens, and ErrBusy after 5 seconds of waiting for other checks.
func (b *Broker) IssueToken(ctx context.Context, clientID string, secret Secret, scopes Scopes) (Token, error) {
	if b.tokens.Key == "" {
		return Token{}, ErrNoTokens
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Token{}, err
	}
	id, known := parseUUID(clientID)
	var client store.Credentials
	if known {
		var err error
		client, err = b.store.GetCredentials(ctx, b.pool, id.String())
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Token{}, fmt.Errorf("issue token: %w", err)
		}
		known = err == nil
	}
	// From here on all that is refused looks the same, and takes as long.
	hash := nobodysHash
	if known {
		stored, err := parseSecretHash(client.SecretHash)
		if err != nil {
			b.logger.LogAttrs(ctx, slog.LevelError, "the stored hash of a client's secret cannot be used", slog.String("client_id", id.String()))
		} else {
			hash = stored
		}
	}
	ok, err := b.hasher.verify(ctx, secret, hash)
	if err != nil {
		return Token{}, fmt.Errorf("issue token: %w", err)
	}
	if !ok || !known || !client.IsActive {
		return Token{}, fmt.Errorf("issue token: %w", ErrCredentials)
	}
	granted := Scopes(strings.Fields(client.Scopes))
	if scopes != nil {
		if missing := granted.Missing(scopes); len(missing) > 0 {
			return Token{}, fmt.Errorf("issue token: %q: %w", missing.String(), ErrScope)
		}
		granted = scopes
	}
	now := time.Now()
	signed, err := jwt.NewWithClaims(jwt.GetSigningMethod(b.tokens.Algorithm), claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Subject:   id.String(),
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(b.tokens.Lifetime)),
		},
		Scope:   granted.String(),
		Version: client.TokenVersion,
	}).SignedString([]byte(b.tokens.Key))
	if err != nil {
		return Token{}, fmt.Errorf("issue token: %w", err)
	}
	return Token{Secret(signed), b.tokens.Lifetime, granted}, nil
}

// A Caller is whom a token stands for.
type Caller struct {
	ClientID uuid.UUID
	Scopes   Scopes
}

// CheckToken returns whose token it is. It looks at the client's row, by its key, each time: an update, a deactivation or a
// delete that was committed before is noticed.
//
// It returns ErrToken, wrapped with the reason, which is for a log; and ErrNoTokens.
func (b *Broker) CheckToken(ctx context.Context, token Secret) (Caller, error) {
	if b.tokens.Key == "" {
		return Caller{}, ErrNoTokens
	}
	if len(token) > maxTokenBytes {
		return Caller{}, fmt.Errorf("%w: more than %d bytes", ErrToken, maxTokenBytes)
	}
	var c claims
	_, err := jwt.ParseWithClaims(string(token), &c, func(*jwt.Token) (any, error) { return []byte(b.tokens.Key), nil },
		jwt.WithValidMethods([]string{b.tokens.Algorithm}), jwt.WithExpirationRequired(), jwt.WithStrictDecoding())
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return Caller{}, fmt.Errorf("%w: expired", ErrToken)
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return Caller{}, fmt.Errorf("%w: another key or algorithm", ErrToken)
	case err != nil: // its text may have parts of the token
		return Caller{}, fmt.Errorf("%w: malformed", ErrToken)
	}
	id, ok := parseUUID(c.Subject)
	if !ok {
		return Caller{}, fmt.Errorf("%w: malformed", ErrToken)
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Caller{}, err
	}
	version, err := b.store.GetTokenVersion(ctx, b.pool, id.String())
	switch {
	case errors.Is(err, ErrNotFound):
		return Caller{}, fmt.Errorf("%w: client %v is deleted or not active", ErrToken, id)
	case err != nil:
		return Caller{}, fmt.Errorf("check token: %w", err)
	case version != c.Version:
		return Caller{}, fmt.Errorf("%w: client %v was updated since", ErrToken, id)
	}
	return Caller{id, strings.Fields(c.Scope)}, nil
}
