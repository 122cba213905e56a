package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// authFlags are of the server. The other commands do not ask who calls.
type authFlags struct {
	AuthEnabled                  string `env:"FASTPUBSUB_AUTH_ENABLED" default:"false" help:"Whether callers need a token, true or false."`
	AuthSecretKey                string `env:"FASTPUBSUB_AUTH_SECRET_KEY" placeholder:"KEY" help:"Signs tokens; at least 16 bytes, the same for all servers. See generate_secret_key. Prefer the variable: other users of the machine see arguments."`
	AuthAlgorithm                string `env:"FASTPUBSUB_AUTH_ALGORITHM" default:"HS256" help:"How tokens are signed: HS256, HS384 or HS512."`
	AuthAccessTokenExpireMinutes string `env:"FASTPUBSUB_AUTH_ACCESS_TOKEN_EXPIRE_MINUTES" default:"30" help:"How long a token is good."`
}

const (
	minKeyBytes      = 16
	maxExpireMinutes = 366 * 24 * 60
)

// tokens returns how the server makes tokens; without a key if it asks nobody for one. The other settings count even then, so that
// a mistake in them does not wait for the day when authentication is switched on.
func (f *authFlags) tokens(b *badSettings) (settings fastpubsub.TokenSettings, enabled bool) {
	enabled, err := parseBool(f.AuthEnabled)
	if err != nil {
		b.add("FASTPUBSUB_AUTH_ENABLED", "%v", err)
	}
	if enabled {
		settings.Key = fastpubsub.Secret(f.AuthSecretKey)
		const variable, remedy = "FASTPUBSUB_AUTH_SECRET_KEY", "fastpubsub generate_secret_key makes one"
		if f.AuthSecretKey == "" {
			b.add(variable, "must be set where FASTPUBSUB_AUTH_ENABLED is true; %s", remedy)
		} else if len(f.AuthSecretKey) < minKeyBytes {
			b.add(variable, "must have at least %d bytes, not %d; %s", minKeyBytes, len(f.AuthSecretKey), remedy)
		}
	}
	switch settings.Algorithm = f.AuthAlgorithm; f.AuthAlgorithm {
	case "HS256", "HS384", "HS512":
	default:
		b.add("FASTPUBSUB_AUTH_ALGORITHM", "must be HS256, HS384 or HS512, not %q", f.AuthAlgorithm)
	}
	settings.Lifetime = time.Duration(b.integer("FASTPUBSUB_AUTH_ACCESS_TOKEN_EXPIRE_MINUTES", f.AuthAccessTokenExpireMinutes, 1, maxExpireMinutes)) * time.Minute
	return settings, enabled
}

func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, fmt.Errorf("must be true or false, not %q", text)
}

type newSecretKey struct{}

// Run implements the subcommand.
func (c *newSecretKey) Run(p *process) error {
	_, err := fmt.Fprintf(p.stdout, "new_secret=%s\n", string(fastpubsub.NewSecret()))
	return err
}

type createClient struct {
	Name          string `arg:"" help:"What people call it."`
	Scopes        string `arg:"" optional:"" default:"*" help:"What it may do, in one argument: \"topics:read topics:publish:orders\". The default is \"*\", everything; quote that."`
	IsActive      string `arg:"" optional:"" default:"true" help:"Whether it gets tokens, true or false."`
	databaseFlags `embed:"" group:"Database"`
}

// Run implements the subcommand.
func (c *createClient) Run(p *process) error {
	var bad badSettings
	connect := c.connection(&bad)
	if isURL(c.Name) || isURL(c.Scopes) || isURL(c.IsActive) {
		bad.add("NAME", "must not be a URL; a database URL belongs in FASTPUBSUB_DATABASE_URL")
		return bad
	}
	client := fastpubsub.NewClient{Name: c.Name}
	if strings.TrimSpace(c.Name) == "" {
		bad.add("NAME", "must not be empty")
	}
	var err error
	client.Scopes, err = fastpubsub.ParseScopes(c.Scopes)
	if invalid := (*fastpubsub.InvalidError)(nil); errors.As(err, &invalid) {
		for _, problem := range invalid.Problems {
			bad.add("SCOPES", "%s", problem.Msg)
		}
	}
	active, err := parseBool(c.IsActive)
	if err != nil {
		bad.add("IS_ACTIVE", "%v", err)
	}
	client.Inactive = !active
	if err := bad.err(); err != nil {
		return err
	}
	return connect(p.ctx, func(broker *fastpubsub.Broker) error {
		created, secret, err := broker.CreateClient(p.ctx, client)
		if invalid := (*fastpubsub.InvalidError)(nil); errors.As(err, &invalid) {
			var bad badSettings
			for _, problem := range invalid.Problems {
				bad.add(strings.ToUpper(problem.Field), "%s", problem.Msg)
			}
			return bad
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.stdout, "client_id=%v\nclient_secret=%s\n", created.ID, string(secret))
		return err
	})
}
