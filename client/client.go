// Package client speaks to the REST API of fastpubsub, for programs that cannot reach its database. It has the verbs of
// [fastpubsub.Broker], with the same types and errors, and the same [Client.Receive] and [Client.Messages].
//
//	c, err := client.New("https://pubsub.example.com", client.Options{ClientID: id, ClientSecret: secret})
//	ids, err := c.Publish(ctx, "orders", fastpubsub.JSON(order))
//	err = c.Receive(ctx, "emails", handle, fastpubsub.ReceiveOptions{})
//
// What a Broker can and this cannot: transactions, so neither PublishTx nor ReceiveTx, Purge, and maintenance.
package client

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/fastpubsub/fastpubsub"
)

// Options are the settings of a [Client]. The zero Options are for a server that asks for no tokens.
type Options struct {
	// ClientID and ClientSecret are exchanged for access tokens. Both or neither.
	ClientID     string
	ClientSecret fastpubsub.Secret

	// HTTPClient sends the requests: for proxies, certificates, tracing. A Timeout of its own must be longer than Consume waits, which
	// in Receive is up to 20 seconds. Redirects are not followed, whatever it says: they could turn a POST into a GET, or take a
	// secret elsewhere. Default one with connections of its own, up to 64 idle ones.
	HTTPClient *http.Client

	// Timeout is how long a server may take for one answer, besides the time that it is asked to wait for messages. Default 30
	// seconds.
	Timeout time.Duration

	// MaxAnswerBytes is the size of the largest answer that is read. Consume asks for half as many messages when they are more, and
	// so on; those that it could not read come back when the server notices, or after their ack deadline. One message may have 16 MiB
	// and its attributes. Default 256 MiB.
	MaxAnswerBytes int64

	// Logger is told what goes wrong in Receive and Messages, where their options name none. Default slog.Default().
	Logger *slog.Logger
}

const (
	defaultTimeout        = 30 * time.Second
	defaultMaxAnswerBytes = 256 << 20
	maxIdleConnections    = 64
	pingAfter             = 15 * time.Second
)

// A Client speaks to one server. It is safe for concurrent use, and runs goroutines of its own only during its calls.
//
// Its errors match those of the package fastpubsub, as each method says, and besides those
//
//   - [fastpubsub.ErrCredentials] where the client's id and secret get no token,
//   - [fastpubsub.ErrNoTokens] where there are such, but the server has authentication turned off,
//   - [fastpubsub.ErrToken] where a token is needed and there is none, or a new one is refused, too,
//   - [fastpubsub.ErrScope] where the client may not do that,
//   - [ErrUnavailable] where there was no answer, or one of a server that cannot work now.
//
// All but those about arguments that were never sent are an [*Error], which has more to tell.
//
// Up to three tries are made, within about a second, or as long as the server's Retry-After says, up to 5 seconds each, where
// that cannot do harm: if no connection was made, and after ErrUnavailable of what reads, of Ack, of Extend, and of Nack that
// names deliveries. Other calls, as Publish, are not repeated where they may have been carried out.
//
// When ctx ends, its request is cancelled, and may have been carried out all the same.
type Client struct {
	base    string // without a slash at the end
	options Options
	http    *http.Client

	fetching singleflight.Group // of tokens
	mu       sync.Mutex         // protects the rest
	held     token
}

// New returns a Client of the server at baseURL, which may have a path. It sends nothing yet. It returns an InvalidError for
// an address or Options that cannot be used.
func New(baseURL string, options Options) (*Client, error) {
	var p problems
	base, err := url.Parse(baseURL)
	switch {
	case err != nil: // which has the address in it, and that may have a password
		p.add("base_url", "url_parsing", "must be a URL")
	case base.Scheme != "http" && base.Scheme != "https":
		p.add("base_url", "url_scheme", "must begin with http:// or https://")
	case base.Host == "":
		p.add("base_url", "url_parsing", "must have a host")
	case base.User != nil:
		p.add("base_url", "value_error", "must have no user and password: ClientID and ClientSecret are for that")
	case base.RawQuery != "" || base.ForceQuery || base.Fragment != "":
		p.add("base_url", "value_error", "must have neither a query nor a fragment")
	}
	if (options.ClientID == "") != (options.ClientSecret == "") {
		p.add("client_secret", "value_error", "must be there if, and only if, client_id is")
	}
	if options.Timeout < 0 {
		p.add("timeout", "greater_than_equal", "must not be negative")
	}
	if options.MaxAnswerBytes < 0 {
		p.add("max_answer_bytes", "greater_than_equal", "must not be negative")
	}
	if err := p.err(); err != nil {
		return nil, fmt.Errorf("fastpubsub client: %w", err)
	}
	options.Timeout = cmp.Or(options.Timeout, defaultTimeout)
	options.MaxAnswerBytes = cmp.Or(options.MaxAnswerBytes, defaultMaxAnswerBytes)
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	c := &Client{base: strings.TrimRight(base.String(), "/"), options: options}
	if options.HTTPClient == nil {
		c.http = &http.Client{Transport: transport()}
	} else {
		copied := *options.HTTPClient
		c.http = &copied
	}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c, nil
}

// transport has more idle connections than http's default, which is two for a host, and finds out about dead ones.
func transport() http.RoundTripper {
	t, ok := http.DefaultTransport.(*http.Transport)
	if !ok { // somebody has replaced it, and wants that to be used
		return http.DefaultTransport
	}
	t = t.Clone()
	t.MaxIdleConnsPerHost = maxIdleConnections
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter}
	return t
}

// Format implements [fmt.Formatter] for all verbs, and shows the server's address alone: what else there is has secrets in it.
func (c *Client) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "client of %s", c.base) }

// CloseIdleConnections closes connections that no call uses, as [http.Client] does. The Client can still be used.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// Check asks the server whether it can work: whether its database can be reached and suits it. It needs no token. It returns
// ErrUnavailable where not.
func (c *Client) Check(ctx context.Context) error {
	return c.call(ctx, request{method: http.MethodGet, path: "/readiness", public: true}, nil)
}

// problems collects what is wrong with arguments.
type problems []fastpubsub.Problem

func (p *problems) add(field, kind, format string, args ...any) {
	*p = append(*p, fastpubsub.Problem{Field: field, Type: kind, Msg: fmt.Sprintf(format, args...)})
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return &fastpubsub.InvalidError{Problems: p}
}

// seconds returns whole seconds as the API takes them. Their range is for the server to check.
func (p *problems) seconds(field string, d time.Duration) int64 {
	if d%time.Second != 0 {
		p.add(field, "value_error", "must be whole seconds, not %v", d)
	}
	return int64(d / time.Second)
}
