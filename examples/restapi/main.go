// Command restapi is a web shop with the REST API in its server: below /pubsub/, beside routes of its own, on its broker, with
// its logger and in its Prometheus registry. Callers need a token. server.go is what there is to copy; this file visits it.
//
//	go run ./examples/restapi
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/examples/internal/demo"
)

func main() { demo.Main(example) }

func example(ctx context.Context, db demo.DB) error {
	shop, err := newShop(db.Pool, db.Schema, slog.New(slog.NewTextHandler(os.Stdout, nil)))
	if err != nil {
		return err
	}
	if _, err := shop.broker.CreateTopic(ctx, "orders"); err != nil {
		return err
	}
	if _, err := shop.broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "shipping", TopicID: "orders"}); err != nil {
		return err
	}
	// The same as fastpubsub create_client; nobody can find out the secret later.
	client, secret, err := shop.broker.CreateClient(ctx,
		fastpubsub.NewClient{Name: "Shipping", Scopes: fastpubsub.Scopes{"subscriptions:consume:shipping"}})
	if err != nil {
		return err
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	g, serving := errgroup.WithContext(serving)
	g.Go(func() error { return shop.serve(serving, listener) })
	g.Go(func() error {
		defer stop()
		return visit(serving, "http://"+listener.Addr().String(), client.ID.String(), string(secret))
	})
	return g.Wait()
}

// visit orders a mug, and consumes the order as the shipping department does.
func visit(ctx context.Context, server, id, secret string) error {
	v := visitor{ctx: ctx, server: server}
	v.ask(202, "POST", "/orders", `{"item": "mug"}`)

	const messages = "/pubsub/subscriptions/shipping/messages?consumer_id=van-1&wait_seconds=5"
	v.ask(401, "GET", messages, "")
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}}
	var token struct {
		AccessToken string `json:"access_token"`
	}
	v.read(&token, v.ask(200, "POST", "/pubsub/oauth/token", form.Encode()))
	v.token = token.AccessToken

	var answer struct {
		Data []struct {
			ID      string          `json:"id"`
			Payload json.RawMessage `json:"payload"`
		} `json:"data"`
	}
	v.read(&answer, v.ask(200, "GET", messages, ""))
	for _, msg := range answer.Data {
		fmt.Printf("  %s\n", msg.Payload)
		v.ask(204, "POST", "/pubsub/subscriptions/shipping/acks", fmt.Sprintf("[%q]", msg.ID))
	}
	v.ask(403, "GET", "/pubsub/clients", "") // not among its scopes

	metrics := string(v.ask(200, "GET", "/metrics", ""))
	if v.err != nil {
		return v.err
	}
	for _, want := range []string{"shop_orders_total 1", `fastpubsub_api_acked_messages_total{subscription="shipping"} 1`} {
		if !strings.Contains(metrics, want+"\n") {
			return fmt.Errorf("the metrics do not have %s", want)
		}
		fmt.Printf("  %s\n", want)
	}
	return nil
}

// A visitor makes requests until an answer is not the one that was wanted.
type visitor struct {
	ctx           context.Context
	server, token string
	err           error
}

func (v *visitor) ask(want int, method, path, body string) []byte {
	if v.err != nil {
		return nil
	}
	var r *http.Request
	if r, v.err = http.NewRequestWithContext(v.ctx, method, v.server+path, strings.NewReader(body)); v.err != nil {
		return nil
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if json.Valid([]byte(body)) {
		r.Header.Set("Content-Type", "application/json")
	}
	if v.token != "" {
		r.Header.Set("Authorization", "Bearer "+v.token)
	}
	var answer *http.Response
	if answer, v.err = http.DefaultClient.Do(r); v.err != nil {
		return nil
	}
	defer answer.Body.Close()
	var text []byte
	text, v.err = io.ReadAll(answer.Body)
	fmt.Printf("%s %s: %s\n", method, path, answer.Status)
	if answer.StatusCode != want && v.err == nil {
		v.err = fmt.Errorf("%s %s is answered with %s, not %d: %s", method, path, answer.Status, want, text)
	}
	return text
}

func (v *visitor) read(into any, text []byte) {
	if v.err == nil {
		v.err = json.Unmarshal(text, into)
	}
}
