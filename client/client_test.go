package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/client"
)

// What the client says about everything is what the broker itself says.
func TestVerbs(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, true)
	_, options := s.credentials("*")
	c := s.client(options)
	ctx := t.Context()
	same := func(what string, got any, err error, want any, wantErr error) {
		t.Helper()
		if err != nil || wantErr != nil {
			t.Fatalf("%s: %v, %v", what, err, wantErr)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-broker +client):\n%s", what, diff)
		}
	}

	if err := c.Check(ctx); err != nil {
		t.Error(err)
	}
	topic, err := c.CreateTopic(ctx, "t")
	want, wantErr := s.broker.GetTopic(ctx, "t")
	same("created topic", topic, err, want, wantErr)
	topic, err = c.GetTopic(ctx, "t")
	same("topic", topic, err, want, wantErr)
	for i := range 250 {
		if _, err := s.broker.CreateTopic(ctx, fmt.Sprint("many-", i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []fastpubsub.ListOptions{{}, {Limit: 1}, {Limit: 100}, {Limit: 1000}, {Offset: 120, Limit: 120}, {Offset: 300}} {
		got, err := c.ListTopics(ctx, o)
		want, wantErr := s.broker.ListTopics(ctx, o)
		same(fmt.Sprintf("topics %+v", o), got, err, want, wantErr)
	}

	filter, err := fastpubsub.ParseFilter([]byte(`{"kind": ["a", 1, true]}`))
	if err != nil {
		t.Fatal(err)
	}
	sub, err := c.CreateSubscription(ctx, fastpubsub.Subscription{ID: "filtered", TopicID: "t", Filter: filter,
		SubscriptionSettings: fastpubsub.SubscriptionSettings{
			MaxDeliveryAttempts: 7, BackoffMin: 2 * time.Second, BackoffMax: 9 * time.Second, AckDeadline: 11 * time.Second}})
	wantSub, wantErr := s.broker.GetSubscription(ctx, "filtered")
	same("created subscription", sub, err, wantSub, wantErr)
	sub, err = c.CreateSubscription(ctx, fastpubsub.Subscription{ID: "s", TopicID: "t"})
	wantSub, wantErr = s.broker.GetSubscription(ctx, "s")
	same("subscription with defaults", sub, err, wantSub, wantErr)
	sub, err = c.GetSubscription(ctx, "s")
	same("subscription", sub, err, wantSub, wantErr)
	subs, err := c.ListSubscriptions(ctx, fastpubsub.ListOptions{})
	wantSubs, wantErr := s.broker.ListSubscriptions(ctx, fastpubsub.ListOptions{})
	same("subscriptions", subs, err, wantSubs, wantErr)

	payload := `{"a":  "é\u00e9","n":12345678901234567890.50}`
	ids, err := c.Publish(ctx, "t", fastpubsub.NewMessage{Payload: []byte(payload), Attributes: map[string]string{"k": "v\"\n"}},
		fastpubsub.JSON(map[string]int{"n": 2}), fastpubsub.JSON(struct{}{}))
	if err != nil || len(ids) != 3 {
		t.Fatalf("publish: %v, %v", ids, err)
	}
	var msgs []fastpubsub.Message
	for len(msgs) < 3 {
		got, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "test & co", Max: 1000, Wait: time.Minute, AckDeadline: 10 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, got...)
	}
	first := msgs[0]
	if first.ID != ids[0] || string(first.Payload) != payload || first.DeliveryAttempts != 1 || first.SubscriptionID != "s" ||
		first.Attributes["k"] != "v\"\n" || first.CreatedAt.Location() != time.UTC || time.Since(first.CreatedAt).Abs() > time.Hour {
		t.Errorf("message %+v, published as %v %s", first, ids[0], payload)
	}

	counted := func(what string, want int) func(n int, err error) {
		return func(n int, err error) {
			t.Helper()
			if n != want || err != nil {
				t.Errorf("%s: %d, %v; want %d", what, n, err, want)
			}
		}
	}
	foreign := fastpubsub.ID(uuid.New())
	counted("extend", 2)(c.Extend(ctx, "s", []fastpubsub.Delivery{msgs[0].Delivery, {ID: ids[1]}, {ID: foreign}, {ID: ids[2], DeliveryAttempts: 5}}, time.Hour))
	counted("ack", 1)(c.Ack(ctx, "s", []fastpubsub.ID{ids[0], foreign}))
	counted("ack again", 0)(c.Ack(ctx, "s", ids[:1]))
	counted("ack of nothing", 0)(c.Ack(ctx, "s", nil))
	counted("nack of another delivery", 0)(c.Nack(ctx, "s", []fastpubsub.Delivery{{ID: ids[1], DeliveryAttempts: 2}, {ID: ids[1], DeliveryAttempts: -1}}, fastpubsub.NackOptions{}))
	counted("nack", 1)(c.Nack(ctx, "s", []fastpubsub.Delivery{{ID: ids[1], DeliveryAttempts: 1}}, fastpubsub.NackOptions{Delay: time.Hour, Error: "later"}))
	counted("nack of any delivery", 1)(c.Nack(ctx, "s", []fastpubsub.Delivery{{ID: ids[2]}}, fastpubsub.NackOptions{DeadLetter: true, Error: "never"}))
	letters, err := c.DeadLetters(ctx, "s", fastpubsub.ListOptions{})
	wantLetters, wantErr := s.broker.DeadLetters(ctx, "s", fastpubsub.ListOptions{})
	same("dead letters", letters, err, wantLetters, wantErr)
	if len(letters) != 1 || letters[0].LastError != "never" {
		t.Errorf("dead letters %+v", letters)
	}
	m, err := c.Metrics(ctx, "s")
	if m.OldestUnackedAge <= 0 {
		t.Errorf("the oldest is %v old", m.OldestUnackedAge)
	}
	m.OldestUnackedAge = 0
	same("metrics", m, err, fastpubsub.Metrics{Available: 1, Delayed: 1, Acked: 1, DeadLetters: 1}, nil)
	counted("reprocess", 1)(c.Reprocess(ctx, "s", []fastpubsub.ID{ids[2], ids[0]}))
	again, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "test", Wait: 20 * time.Second})
	if err != nil || len(again) != 1 || again[0].ID != ids[2] || again[0].DeliveryAttempts != 1 {
		t.Fatalf("reprocessed: %+v, %v", again, err)
	}
	counted("give back", 1)(c.Extend(ctx, "s", []fastpubsub.Delivery{again[0].Delivery}, 0))
	if again, err = c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "test"}); err != nil || len(again) != 1 || again[0].DeliveryAttempts != 1 {
		t.Errorf("given back: %+v, %v", again, err)
	}
	counted("nack uncounted, at once", 1)(c.Nack(ctx, "s", []fastpubsub.Delivery{again[0].Delivery}, fastpubsub.NackOptions{Uncounted: true, Immediate: true}))

	id, secret, err := c.CreateClient(ctx, fastpubsub.NewClient{Name: "other", Scopes: fastpubsub.Scopes{"topics:read"}, Inactive: true})
	if err != nil || len(secret) != 32 {
		t.Fatalf("create client: %v", err)
	}
	active := true
	updated, err := c.UpdateClient(ctx, id, fastpubsub.ClientUpdate{Name: "o", Scopes: fastpubsub.Scopes{"topics:read", "clients:read"}, Active: &active})
	wantClient, wantErr := s.broker.GetClient(ctx, id)
	same("updated client", updated, err, wantClient, wantErr)
	got, err := c.GetClient(ctx, id)
	same("client", got, err, wantClient, wantErr)
	clients, err := c.ListClients(ctx, fastpubsub.ListOptions{})
	wantClients, wantErr := s.broker.ListClients(ctx, fastpubsub.ListOptions{})
	same("clients", clients, err, wantClients, wantErr)
	other := s.client(client.Options{ClientID: id.String(), ClientSecret: secret})
	if _, err := other.GetTopic(ctx, "t"); err != nil {
		t.Error(err)
	}

	for what, err := range map[string]error{
		"client": c.DeleteClient(ctx, id), "subscription": c.DeleteSubscription(ctx, "filtered"), "topic": c.DeleteTopic(ctx, "t"),
	} {
		if err != nil {
			t.Errorf("delete %s: %v", what, err)
		}
	}
	if _, err := s.broker.GetSubscription(ctx, "s"); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("after the topic was deleted: %v", err)
	}
	if n := s.tokens.Load(); n != 2 {
		t.Errorf("%d tokens for two clients", n)
	}
}

// More than one request can have is sent in several, whatever the server's limit.
func TestManyIDs(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{0, 7} {
		s, _ := newServer(t, false)
		s.kill()
		s.config.AckMaxIDs = limit
		s.start()
		c := s.client(client.Options{})
		ids := s.fill(2500, fastpubsub.SubscriptionSettings{})
		taken := 0
		for taken < len(ids) {
			msgs, err := s.broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: 1000, Wait: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			taken += len(msgs)
		}
		deliveries := make([]fastpubsub.Delivery, 0, 1200)
		for i, id := range ids[:1200] {
			deliveries = append(deliveries, fastpubsub.Delivery{ID: id, DeliveryAttempts: i % 2})
		}
		if n, err := c.Extend(t.Context(), "s", deliveries, time.Hour); n != 1200 || err != nil {
			t.Errorf("limit %d: extended %d, %v", limit, n, err)
		}
		if n, err := c.Nack(t.Context(), "s", deliveries, fastpubsub.NackOptions{DeadLetter: true}); n != 1200 || err != nil {
			t.Errorf("limit %d: nacked %d, %v", limit, n, err)
		}
		if n, err := c.Reprocess(t.Context(), "s", ids); n != 1200 || err != nil {
			t.Errorf("limit %d: reprocessed %d, %v", limit, n, err)
		}
		if n, err := c.Ack(t.Context(), "s", ids); n != 1300 || err != nil {
			t.Errorf("limit %d: acked %d, %v", limit, n, err)
		}
	}
}

// Errors are those of the package fastpubsub, and say what the server said.
func TestErrors(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, true)
	_, options := s.credentials("*")
	c := s.client(options)
	_, few := s.credentials("topics:read", "subscriptions:consume:other", "clients:create")
	weak := s.client(few)
	nobody := s.client(client.Options{})
	few.ClientSecret = fastpubsub.NewSecret()
	stranger := s.client(few)
	s.fill(1, fastpubsub.SubscriptionSettings{})
	ctx := t.Context()
	id := fastpubsub.ID(uuid.New())
	consume := fastpubsub.ConsumeOptions{Consumer: "test"}

	for name, test := range map[string]struct {
		want error
		call func() error
	}{
		"no such topic":             {fastpubsub.ErrNotFound, func() error { _, err := c.GetTopic(ctx, "x"); return err }},
		"no id":                     {fastpubsub.ErrNotFound, func() error { _, err := c.GetTopic(ctx, "a/b?c"); return err }},
		"empty id":                  {fastpubsub.ErrNotFound, func() error { return c.DeleteTopic(ctx, "") }},
		"dots":                      {fastpubsub.ErrNotFound, func() error { return c.DeleteTopic(ctx, "..") }},
		"publish nowhere":           {fastpubsub.ErrNotFound, func() error { _, err := c.Publish(ctx, "x", fastpubsub.JSON(struct{}{})); return err }},
		"consume from nothing":      {fastpubsub.ErrNotFound, func() error { _, err := c.Consume(ctx, "x", consume); return err }},
		"ack on nothing":            {fastpubsub.ErrNotFound, func() error { _, err := c.Ack(ctx, "x", []fastpubsub.ID{id}); return err }},
		"ack of nothing on nothing": {fastpubsub.ErrNotFound, func() error { _, err := c.Ack(ctx, "x", nil); return err }},
		"nack on nothing":           {fastpubsub.ErrNotFound, func() error { _, err := c.Nack(ctx, "x", nil, fastpubsub.NackOptions{}); return err }},
		"metrics of nothing":        {fastpubsub.ErrNotFound, func() error { _, err := c.Metrics(ctx, "x"); return err }},
		"no such client":            {fastpubsub.ErrNotFound, func() error { _, err := c.GetClient(ctx, uuid.New()); return err }},
		"topic exists":              {fastpubsub.ErrExists, func() error { _, err := c.CreateTopic(ctx, "t"); return err }},
		"subscription exists": {fastpubsub.ErrExists, func() error {
			_, err := c.CreateSubscription(ctx, fastpubsub.Subscription{ID: "s", TopicID: "t"})
			return err
		}},
		"parts of a second": {fastpubsub.ErrInvalid, func() error { _, err := c.Extend(ctx, "s", nil, time.Millisecond); return err }},
		"a delay and none": {fastpubsub.ErrInvalid, func() error {
			_, err := c.Nack(ctx, "s", nil, fastpubsub.NackOptions{Immediate: true, Delay: time.Second})
			return err
		}},
		"single": {fastpubsub.ErrInvalid, func() error {
			_, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "c", Single: true})
			return err
		}},
		"too many": {fastpubsub.ErrInvalid, func() error {
			_, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "c", Max: 1001})
			return err
		}},
		"less than none":    {fastpubsub.ErrInvalid, func() error { _, err := c.ListTopics(ctx, fastpubsub.ListOptions{Limit: -1}); return err }},
		"no consumer":       {fastpubsub.ErrInvalid, func() error { _, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{}); return err }},
		"too large":         {fastpubsub.ErrInvalid, func() error { _, err := c.Publish(ctx, "t", large(9<<20), large(9<<20)); return err }},
		"not of the scopes": {fastpubsub.ErrScope, func() error { _, err := weak.Consume(ctx, "s", consume); return err }},
		"grants what it lacks": {fastpubsub.ErrScope, func() error {
			_, _, err := weak.CreateClient(ctx, fastpubsub.NewClient{Name: "x", Scopes: fastpubsub.Scopes{"*"}})
			return err
		}},
		"no credentials": {fastpubsub.ErrToken, func() error { _, err := nobody.GetTopic(ctx, "t"); return err }},
		"wrong secret":   {fastpubsub.ErrCredentials, func() error { _, err := stranger.GetTopic(ctx, "t"); return err }},
	} {
		err := test.call()
		if !errors.Is(err, test.want) || errors.Is(err, client.ErrUnavailable) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		for _, secret := range []fastpubsub.Secret{options.ClientSecret, few.ClientSecret} {
			if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, string(secret)) {
				t.Errorf("%s: the secret is in the error", name)
			}
		}
	}
	if text := fmt.Sprintf("%v %+v %#v", options, c, c); strings.Contains(text, string(options.ClientSecret)) {
		t.Error("the secret is printed with the client")
	}

	var e *client.Error
	if _, err := c.GetTopic(ctx, "x"); !errors.As(err, &e) || e.Status != 404 || e.Detail != "Topic not found" || e.RequestID == "" || e.Path != "/topics/x" {
		t.Errorf("error %+v", err)
	}
	elsewhere, err := client.New("http://"+s.address+"/v2/", options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(elsewhere.CloseIdleConnections)
	if err := elsewhere.Check(ctx); errors.Is(err, fastpubsub.ErrNotFound) || !errors.As(err, &e) || e.Status != 404 || !strings.Contains(err.Error(), "is there a server") {
		t.Errorf("a wrong path: %v", err)
	}
}

func large(n int) fastpubsub.NewMessage {
	return fastpubsub.JSON(map[string]string{"text": strings.Repeat("x", n)})
}

// Problems have the fields that the broker's have, whoever finds them.
func TestProblems(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, false)
	s.fill(0, fastpubsub.SubscriptionSettings{})
	c := s.client(client.Options{})
	ctx := t.Context()
	bad := []fastpubsub.NewMessage{
		{Payload: []byte(`{}`)},
		{Payload: []byte(`{}},{"payload":{}`)}, // which would be two messages
		{Payload: []byte(`[1]`)},
		{},
		{Payload: []byte(`{}`), Attributes: map[string]string{"k": "\x00"}},
	}
	_, want := s.broker.Publish(ctx, "t", bad...)
	_, got := c.Publish(ctx, "t", bad...)
	if diff := cmp.Diff(problemsOf(t, want), problemsOf(t, got)); diff != "" {
		t.Errorf("problems of publish (-broker +client):\n%s", diff)
	}
	if n, err := c.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "test"}); len(n) > 0 || err != nil {
		t.Errorf("published all the same: %v, %v", n, err)
	}
	_, err := c.Publish(ctx, "t", fastpubsub.JSON(func() {}))
	if err == nil || !strings.Contains(err.Error(), "unsupported type") {
		t.Errorf("what cannot be encoded: %v", err)
	}

	sub := fastpubsub.Subscription{ID: "a b", SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: -1, AckDeadline: 13 * time.Hour}}
	_, got = c.CreateSubscription(ctx, sub)
	var fields []string
	for _, p := range problemsOf(t, got) {
		fields = append(fields, p.Field+" "+p.Type)
	}
	wantFields := []string{"id string_pattern_mismatch", "topic_id string_too_short", "max_delivery_attempts greater_than_equal", "ack_deadline_seconds less_than_equal"}
	if diff := cmp.Diff(wantFields, fields); diff != "" {
		t.Errorf("problems of a subscription (-want +got):\n%s", diff)
	}
}

func problemsOf(t *testing.T, err error) []fastpubsub.Problem {
	t.Helper()
	var invalid *fastpubsub.InvalidError
	if !errors.As(err, &invalid) {
		t.Fatalf("no InvalidError: %v", err)
	}
	return invalid.Problems
}

func TestNew(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		url     string
		options client.Options
		field   string
	}{
		{"localhost:8000", client.Options{}, "base_url"},
		{"ftp://localhost", client.Options{}, "base_url"},
		{"http://", client.Options{}, "base_url"},
		{"http://me:hunter2@localhost", client.Options{}, "base_url"},
		{"http://me:hunter2@local host", client.Options{}, "base_url"},
		{"http://localhost?x=1", client.Options{}, "base_url"},
		{"http://localhost", client.Options{ClientID: "a"}, "client_secret"},
		{"http://localhost", client.Options{ClientSecret: "a"}, "client_secret"},
		{"http://localhost", client.Options{Timeout: -1}, "timeout"},
		{"http://localhost", client.Options{MaxAnswerBytes: -1}, "max_answer_bytes"},
	} {
		_, err := client.New(test.url, test.options)
		var invalid *fastpubsub.InvalidError
		if !errors.As(err, &invalid) || invalid.Problems[0].Field != test.field || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s %+v: %v", test.url, test.options, err)
		}
	}
}

// A token is fetched once for all, replaced when it was revoked, and refused for good when the client was.
func TestTokens(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, true)
	created, options := s.credentials("*")
	c := s.client(options)
	s.fill(0, fastpubsub.SubscriptionSettings{})
	all := func(want error) {
		t.Helper()
		const callers = 20
		errs := make(chan error, callers)
		for range callers {
			go func() { _, err := c.GetTopic(t.Context(), "t"); errs <- err }()
		}
		for range callers {
			if err := <-errs; !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
	}
	all(nil)
	if n := s.tokens.Load(); n != 1 {
		t.Errorf("%d tokens were fetched at once", n)
	}
	if _, err := s.broker.UpdateClient(t.Context(), created.ID, fastpubsub.ClientUpdate{Name: "new", Scopes: created.Scopes}); err != nil {
		t.Fatal(err)
	}
	all(nil)
	if n := s.tokens.Load(); n != 2 {
		t.Errorf("%d tokens after one was revoked", n)
	}
	// Whoever no longer wants a token leaves it to the others.
	if _, err := s.broker.UpdateClient(t.Context(), created.ID, fastpubsub.ClientUpdate{Name: "new", Scopes: created.Scopes}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.GetTopic(ctx, "t"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	all(nil)

	inactive := false
	if _, err := s.broker.UpdateClient(t.Context(), created.ID, fastpubsub.ClientUpdate{Name: "new", Scopes: created.Scopes, Active: &inactive}); err != nil {
		t.Fatal(err)
	}
	_, err := c.Publish(t.Context(), "t", fastpubsub.JSON(struct{}{}))
	if !errors.Is(err, fastpubsub.ErrCredentials) || !strings.Contains(err.Error(), "Invalid client credentials") {
		t.Errorf("a client that is not active: %v", err)
	}

	open, _ := newServer(t, false)
	if _, err := open.client(options).GetTopic(t.Context(), "t"); !errors.Is(err, fastpubsub.ErrNoTokens) {
		t.Errorf("a server without authentication: %v", err)
	}
}

// A redirect is not followed: neither a message nor a secret goes elsewhere.
func TestRedirect(t *testing.T) {
	t.Parallel()
	c := fake(t, client.Options{ClientID: "a", ClientSecret: "hunter2"}, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "pubsub.example" {
			t.Errorf("followed to %s", r.Host)
		}
		http.Redirect(w, r, "https://elsewhere.example/in?state=hunter2", http.StatusTemporaryRedirect)
	})
	_, err := c.Publish(t.Context(), "t", fastpubsub.JSON(struct{}{}))
	var e *client.Error
	if !errors.As(err, &e) || e.Status != 307 || !strings.Contains(err.Error(), "https://elsewhere.example/in") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

// An error may have anything in it. What is kept of it is what a Broker keeps.
func TestErrorTexts(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, false)
	ctx := t.Context()
	if _, err := s.broker.CreateTopic(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.broker.CreateSubscription(ctx, fastpubsub.Subscription{ID: "s", TopicID: "t"}); err != nil {
		t.Fatal(err)
	}
	c := s.client(client.Options{})
	for _, text := range []string{"a\x00b", "\x00", "a\xffb", "a\"\\\n<&>b", strings.Repeat("é", 5000), "x" + strings.Repeat("é", 5000), strings.Repeat("x", 17<<20)} {
		var kept [2]string
		for i, nack := range []func(context.Context, string, []fastpubsub.Delivery, fastpubsub.NackOptions) (int, error){s.broker.Nack, c.Nack} {
			ids, err := s.broker.Publish(ctx, "t", fastpubsub.JSON(map[string]int{}))
			if err != nil {
				t.Fatal(err)
			}
			msgs, err := s.broker.Consume(ctx, "s", fastpubsub.ConsumeOptions{Consumer: "test"})
			if err != nil || len(msgs) != 1 {
				t.Fatalf("%d messages, %v", len(msgs), err)
			}
			if n, err := nack(ctx, "s", []fastpubsub.Delivery{msgs[0].Delivery}, fastpubsub.NackOptions{DeadLetter: true, Error: text}); n != 1 || err != nil {
				t.Errorf("%.20q: nacked %d, %v", text, n, err)
			}
			letters, err := s.broker.DeadLetters(ctx, "s", fastpubsub.ListOptions{})
			if err != nil || len(letters) != 1 {
				t.Errorf("%.20q: %d dead letters, %v", text, len(letters), err)
				continue
			}
			kept[i] = letters[0].LastError
			if _, err := s.broker.Purge(ctx, "s", ids); err != nil {
				t.Fatal(err)
			}
		}
		if kept[0] == "" || kept[1] != kept[0] {
			t.Errorf("%.20q became %.20q, want %.20q", text, kept[1], kept[0])
		}
	}
}
