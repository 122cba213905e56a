package fastpubsub_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

func TestNew(t *testing.T) {
	t.Parallel()
	pool := storetest.New(t).Pool
	for _, tt := range []struct {
		reason string
		pool   *pgxpool.Pool
		config fastpubsub.Config
		want   []string // fields
	}{
		{"the zero Config is a good one", pool, fastpubsub.Config{}, nil},
		{"a pool is needed", nil, fastpubsub.Config{}, []string{"pool"}},
		{"a schema's name is quoted, but plain", pool, fastpubsub.Config{Schema: "Orders"}, []string{"schema"}},
		{"Postgres keeps names for itself", pool, fastpubsub.Config{Schema: "pg_orders"}, []string{"schema"}},
		{"64 characters are one too many", pool, fastpubsub.Config{Schema: strings.Repeat("a", 64)}, []string{"schema"}},
		{"all problems come at once", pool, fastpubsub.Config{Schema: "1", SubscriptionDefaults: fastpubsub.SubscriptionSettings{
			MaxDeliveryAttempts: -1, BackoffMin: time.Minute, BackoffMax: time.Second, AckDeadline: 13 * time.Hour}},
			[]string{"schema", "max_delivery_attempts", "backoff_max_seconds", "ack_deadline_seconds"}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			_, err := fastpubsub.New(tt.pool, tt.config)
			if diff := cmp.Diff(tt.want, invalidFields(err)); diff != "" {
				t.Errorf("invalid fields (-want +got):\n%s", diff)
			}
		})
	}
}

// invalidFields returns the fields of an InvalidError, and the error's text for another one.
func invalidFields(err error) []string {
	var invalid *fastpubsub.InvalidError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &invalid) || !errors.Is(err, fastpubsub.ErrInvalid):
		return []string{err.Error()}
	}
	var fields []string
	for _, p := range invalid.Problems {
		fields = append(fields, p.Field)
	}
	return fields
}

func TestTopics(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	ctx := t.Context()
	longest := strings.Repeat("z", 128)
	for _, id := range []string{"b", "B", "a-1", "_", "...", longest} {
		topic, err := b.CreateTopic(ctx, id)
		if err != nil || topic.ID != id || topic.CreatedAt.Location() != time.UTC || time.Since(topic.CreatedAt).Abs() > time.Minute {
			t.Errorf("created %v, %v", topic, err)
		}
		if got, err := b.GetTopic(ctx, id); got != topic || err != nil {
			t.Errorf("got %v, %v, want %v", got, err, topic)
		}
	}
	if _, err := b.CreateTopic(ctx, "b"); !errors.Is(err, fastpubsub.ErrExists) {
		t.Errorf("creating it again returned %v", err)
	}
	for _, id := range []string{"", ".", "..", "a b", "a/b", "ä", "a\x00", longest + "z"} {
		if _, err := b.CreateTopic(ctx, id); !slices.Equal(invalidFields(err), []string{"id"}) {
			t.Errorf("creating %q returned %v", id, err)
		}
	}
	var ids []string
	for offset := 0; ; offset += 4 {
		page, err := b.ListTopics(ctx, fastpubsub.ListOptions{Offset: offset, Limit: 4})
		if err != nil {
			t.Fatal(err)
		}
		for _, topic := range page {
			ids = append(ids, topic.ID)
		}
		if len(page) < 4 {
			break
		}
	}
	if diff := cmp.Diff([]string{"...", "B", "_", "a-1", "b", longest}, ids); diff != "" {
		t.Errorf("list, which is in bytewise order (-want +got):\n%s", diff)
	}
	_, err := b.ListTopics(ctx, fastpubsub.ListOptions{Offset: -1, Limit: 1001})
	if diff := cmp.Diff([]string{"offset", "limit"}, invalidFields(err)); diff != "" {
		t.Errorf("list out of range (-want +got):\n%s", diff)
	}
	if err := b.DeleteTopic(ctx, "b"); err != nil {
		t.Error(err)
	}
	if err := b.DeleteTopic(ctx, "b"); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("deleting it again returned %v", err)
	}
	if _, err := b.GetTopic(ctx, "b"); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("getting it afterwards returned %v", err)
	}
}

func TestSubscriptions(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	ctx := t.Context()
	createTopic(t, b, "t")
	filter, err := fastpubsub.ParseFilter([]byte(`{"n": [1.0, "1"]}`))
	if err != nil {
		t.Fatal(err)
	}
	none, _ := fastpubsub.ParseFilter([]byte(`{}`))
	defaults := fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 5, BackoffMin: 5 * time.Second, BackoffMax: 300 * time.Second, AckDeadline: time.Minute}
	own := fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 1, BackoffMin: time.Second, BackoffMax: time.Second, AckDeadline: 12 * time.Hour}
	var created []fastpubsub.Subscription
	for _, sub := range []fastpubsub.Subscription{
		{ID: "defaults", TopicID: "t"},
		{ID: "empty-filter", TopicID: "t", Filter: none},
		{ID: "own", TopicID: "t", Filter: filter, SubscriptionSettings: own},
	} {
		got, err := b.CreateSubscription(ctx, sub)
		if err != nil {
			t.Fatal(err)
		}
		want := sub
		if want.SubscriptionSettings == (fastpubsub.SubscriptionSettings{}) {
			want.SubscriptionSettings = defaults
		}
		want.CreatedAt = got.CreatedAt
		if diff := cmp.Diff(want, got); diff != "" || time.Since(got.CreatedAt).Abs() > time.Minute {
			t.Errorf("created at %v (-want +got):\n%s", got.CreatedAt, diff)
		}
		read, err := b.GetSubscription(ctx, sub.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, read); diff != "" {
			t.Errorf("read (-created +read):\n%s", diff)
		}
		created = append(created, got)
	}
	list, err := b.ListSubscriptions(ctx, fastpubsub.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(created, list); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}

	for _, tt := range []struct {
		reason string
		sub    fastpubsub.Subscription
		want   error
	}{
		{"the id is taken", fastpubsub.Subscription{ID: "own", TopicID: "t"}, fastpubsub.ErrExists},
		{"a taken id comes before a missing topic", fastpubsub.Subscription{ID: "own", TopicID: "missing"}, fastpubsub.ErrExists},
		{"a topic is needed", fastpubsub.Subscription{ID: "new", TopicID: "missing"}, fastpubsub.ErrNotFound},
	} {
		if _, err := b.CreateSubscription(ctx, tt.sub); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.reason, err, tt.want)
		}
	}
	_, err = b.CreateSubscription(ctx, fastpubsub.Subscription{ID: "..", TopicID: "", SubscriptionSettings: fastpubsub.SubscriptionSettings{
		MaxDeliveryAttempts: -1, BackoffMin: -time.Second, BackoffMax: 1500 * time.Millisecond, AckDeadline: 12*time.Hour + time.Second}})
	want := []string{"id", "topic_id", "max_delivery_attempts", "backoff_min_seconds", "backoff_max_seconds", "ack_deadline_seconds"}
	if diff := cmp.Diff(want, invalidFields(err)); diff != "" {
		t.Errorf("invalid fields (-want +got):\n%s", diff)
	}

	if err := b.DeleteSubscription(ctx, "own"); err != nil {
		t.Error(err)
	}
	if err := b.DeleteSubscription(ctx, "own"); !errors.Is(err, fastpubsub.ErrNotFound) {
		t.Errorf("deleting it again returned %v", err)
	}
	for call, err := range map[string]error{
		"get":     second(b.GetSubscription(ctx, "own")),
		"consume": second(b.Consume(ctx, "own", fastpubsub.ConsumeOptions{Consumer: "test"})),
		"ack":     second(b.Ack(ctx, "own", nil)),
		"publish": second(b.Publish(ctx, "missing", numbered(0, 1)...)),
		// What cannot be an id is none that exists, though Postgres does not take it as text.
		"get, not UTF-8":     second(b.GetTopic(ctx, "\xff")),
		"delete, with NUL":   b.DeleteTopic(ctx, "a\x00"),
		"consume, not UTF-8": second(b.Consume(ctx, "\xff", fastpubsub.ConsumeOptions{Consumer: "test"})),
		"ack, with NUL":      second(b.Ack(ctx, "a\x00", nil)),
		"publish, not UTF-8": second(b.Publish(ctx, "\xff", numbered(0, 1)...)),
	} {
		if !errors.Is(err, fastpubsub.ErrNotFound) {
			t.Errorf("%s returned %v, want %v", call, err, fastpubsub.ErrNotFound)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestPublishRefuses(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	good := numbered(0, 1)[0]
	payload := func(s string) fastpubsub.NewMessage { return fastpubsub.NewMessage{Payload: []byte(s)} }
	attributes := func(a map[string]string) fastpubsub.NewMessage {
		return fastpubsub.NewMessage{Payload: good.Payload, Attributes: a}
	}
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprint(i)] = ""
	}
	for _, tt := range []struct {
		reason string
		msgs   []fastpubsub.NewMessage
		want   []string
	}{
		{"nothing", nil, []string{"messages"}},
		{"too many", slices.Repeat([]fastpubsub.NewMessage{good}, 10_001), []string{"messages"}},
		{"no payload", []fastpubsub.NewMessage{{}}, []string{"messages.0.payload"}},
		{"every bad one is named", []fastpubsub.NewMessage{payload(`[]`), good, payload(`{"a":"\u0000"}`), payload(`{`)},
			[]string{"messages.0.payload", "messages.2.payload", "messages.3.payload"}},
		{"one that is too large", []fastpubsub.NewMessage{payload(`{"a":"` + strings.Repeat("x", 16<<20) + `"}`)}, []string{"messages.0.payload"}},
		{"together too large", slices.Repeat([]fastpubsub.NewMessage{payload(`{"a":"` + strings.Repeat("x", 15<<20) + `"}`)}, 5), []string{"messages"}},
		{"too many attributes", []fastpubsub.NewMessage{good, attributes(many)}, []string{"messages.1.attributes"}},
		{"an attribute that is too long", []fastpubsub.NewMessage{attributes(map[string]string{"a": strings.Repeat("x", 4097)})}, []string{"messages.0.attributes"}},
		{"an attribute with NUL", []fastpubsub.NewMessage{attributes(map[string]string{"a": "\x00"})}, []string{"messages.0.attributes"}},
		{"an attribute that is not UTF-8", []fastpubsub.NewMessage{attributes(map[string]string{"\xff": ""})}, []string{"messages.0.attributes"}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			_, err := b.Publish(t.Context(), "t", tt.msgs...)
			if diff := cmp.Diff(tt.want, invalidFields(err)); diff != "" {
				t.Errorf("invalid fields (-want +got):\n%s", diff)
			}
		})
	}
	var unsupported *json.UnsupportedTypeError
	if _, err := b.Publish(t.Context(), "t", good, fastpubsub.JSON(make(chan int))); !errors.As(err, &unsupported) {
		t.Errorf("a value that is not JSON returned %v", err)
	}
	if n := query[int](t, db, `SELECT count(*) FROM {schema}.messages`); n > 0 {
		t.Errorf("%d record batches were written", n)
	}

	// Bad input does not end the caller's transaction.
	tx := begin(t, db, pgx.TxOptions{})
	b.PublishTx(t.Context(), tx, "t", payload(`[]`))
	b.PublishTx(t.Context(), tx, "missing", good)
	b.AckTx(t.Context(), tx, "missing", nil)
	publishTx(t, b, tx, "t", good)
	commit(t, tx)
}

func TestConsumeRefuses(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	for _, tt := range []struct {
		options fastpubsub.ConsumeOptions
		want    []string
	}{
		{fastpubsub.ConsumeOptions{}, []string{"consumer_id"}},
		{fastpubsub.ConsumeOptions{Consumer: strings.Repeat("ä", 129), Max: 1001, Wait: -1, AckDeadline: time.Millisecond},
			[]string{"consumer_id", "batch_size", "wait_seconds", "ack_deadline_seconds"}},
		{fastpubsub.ConsumeOptions{Consumer: "a\x00", Max: -1, AckDeadline: 13 * time.Hour}, []string{"consumer_id", "batch_size", "ack_deadline_seconds"}},
		{fastpubsub.ConsumeOptions{Consumer: "\xff"}, []string{"consumer_id"}},
	} {
		_, err := b.Consume(t.Context(), "s", tt.options)
		if diff := cmp.Diff(tt.want, invalidFields(err)); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.options, diff)
		}
	}
	_, err := b.Ack(t.Context(), "s", make([]fastpubsub.ID, 10_001))
	if diff := cmp.Diff([]string{"ids"}, invalidFields(err)); diff != "" {
		t.Errorf("ack (-want +got):\n%s", diff)
	}
}

// queryModes are all that pgx has.
var queryModes = map[string]pgx.QueryExecMode{"cache statement": pgx.QueryExecModeCacheStatement, "cache describe": pgx.QueryExecModeCacheDescribe,
	"describe exec": pgx.QueryExecModeDescribeExec, "exec": pgx.QueryExecModeExec, "simple protocol": pgx.QueryExecModeSimpleProtocol}

// TestRoundTrip publishes what is hard to carry, in every query mode of pgx, and compares byte for byte.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	var want []fastpubsub.NewMessage
	for _, payload := range []string{
		`{}`, ` { "b" : 1 , "a":1, "a" : 2 } `, `{"n":123456789012345678901234567890.10,"m":1e-9999,"z":-0.00}`,
		`{"s":"\\ \" \/ \b\f\n\r\t \u00e4 \ud83d\ude00 ä 😀","":""}`, `{"a":[[],{},[null,true,false]]}`,
		`{"a":` + strings.Repeat("[", 127) + strings.Repeat("]", 127) + `}`, `{"x":"NULL","y":"{,}","z":"'; DROP TABLE t; --"}`,
		`{"large":"` + strings.Repeat("x'\\\\", 200_000) + `"}`,
	} {
		want = append(want, fastpubsub.NewMessage{Payload: []byte(payload)})
	}
	want[0].Attributes = map[string]string{"": "", "ä": "\\ \" ' \n"}
	want[3].Attributes = map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

	for name, mode := range queryModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, db := newBroker(t, func(c *pgxpool.Config) {
				c.ConnConfig.DefaultQueryExecMode = mode
				// Nothing may depend on how a program has set up its sessions.
				c.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
				c.ConnConfig.RuntimeParams["TimeZone"] = "Asia/Kathmandu"
			})
			createTopic(t, b, "t")
			createSubscription(t, b, "all", "t", noFilter)
			createSubscription(t, b, "filtered", "t", `{"x":["NULL"]}`)
			before := time.Now().Add(-time.Minute)
			ids := publish(t, b, "t", want...)
			for sub, wanted := range map[string][]int{"all": {0, 1, 2, 3, 4, 5, 6, 7}, "filtered": {6}} {
				var got []fastpubsub.Message
				for range wanted {
					got = append(got, consume(t, b, sub, 3)...)
				}
				if len(got) != len(wanted) {
					t.Fatalf("%s got %d messages, want %d", sub, len(got), len(wanted))
				}
				for i, w := range wanted {
					g := got[i]
					if g.CreatedAt.Before(before) || g.CreatedAt.After(time.Now().Add(time.Minute)) || g.CreatedAt.Location() != time.UTC {
						t.Errorf("%s: created at %v", sub, g.CreatedAt)
					}
					g.CreatedAt = time.Time{}
					want := fastpubsub.Message{Delivery: fastpubsub.Delivery{ID: ids[w], DeliveryAttempts: 1}, SubscriptionID: sub,
						Payload: want[w].Payload, Attributes: want[w].Attributes}
					if diff := cmp.Diff(want, g); diff != "" {
						t.Errorf("%s, message %d (-want +got):\n%s", sub, w, diff)
					}
				}
				got[0], got[len(got)-1] = got[len(got)-1], got[0]
				if n, err := b.Ack(t.Context(), sub, idsOf(got)); err != nil || n != len(wanted) {
					t.Errorf("%s: acked %d, %v, want %d", sub, n, err, len(wanted))
				}
			}
			inTx := begin(t, db, pgx.TxOptions{})
			id := publishTx(t, b, inTx, "t", want[6])
			commit(t, inTx)
			consume(t, b, "filtered", 1)
			inTx = begin(t, db, pgx.TxOptions{})
			if n, err := b.AckTx(t.Context(), inTx, "filtered", id); err != nil || n != 1 {
				t.Errorf("acked %d in a transaction, %v", n, err)
			}
			commit(t, inTx)
		})
	}
}

// TestRecordBatches publishes all sizes around the limits of a record batch and takes them in all portions.
func TestRecordBatches(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	createSubscription(t, b, "single", "t", `{"odd":[true]}`)
	var want []fastpubsub.ID
	wantOdd := 0
	for _, n := range []int{1, 2, 511, 512, 513, 1024, 1025, 3333, 10_000} {
		for _, size := range []int{0, 150} {
			msgs := make([]fastpubsub.NewMessage, n)
			for i := range msgs {
				msgs[i] = fastpubsub.JSON(map[string]any{"odd": i%2 == 1, "pad": strings.Repeat("x", size)})
			}
			ids := publish(t, b, "t", msgs...)
			want = append(want, ids...)
			wantOdd += n / 2
			if !slices.IsSortedFunc(ids, func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) }) || len(ids) != n {
				t.Errorf("%d messages: ids are not in order", n)
			}
		}
	}
	if largest := query[int](t, db, `SELECT max(n) FROM {schema}.messages`); largest > 512 {
		t.Errorf("a record batch has %d messages", largest)
	}
	if err := wantDelivered(t, b, "s", 777, want...); err != nil {
		t.Error(err)
	}
	odd := 0
	for {
		msgs, err := b.Consume(t.Context(), "single", fastpubsub.ConsumeOptions{Consumer: "test", Max: 1000, Single: true})
		if err != nil {
			t.Fatal(err)
		}
		if len(msgs) == 0 {
			break
		}
		odd += len(msgs)
	}
	if rows := query[int](t, db, `SELECT count(*) FROM {schema}.leases WHERE sub = 2`); odd != wantOdd || rows != odd {
		t.Errorf("%d odd messages came, with %d leases; want %d", odd, rows, wantOdd)
	}
	// The view for people shows the same ids.
	all := query[int](t, db, `SELECT count(*) FROM {schema}.published WHERE id = ANY ($1)`, want)
	if all != len(want) {
		t.Errorf("the view shows %d of %d", all, len(want))
	}
}

func TestAckIgnores(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	createSubscription(t, b, "other", "t", noFilter)
	ids := publish(t, b, "t", numbered(0, 4)...)
	consume(t, b, "s", 2)
	foreign, err := fastpubsub.ParseID("550e8400-e29b-41d4-a716-446655440000")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		reason string
		sub    string
		ids    []fastpubsub.ID
		want   int
	}{
		{"nothing", "s", nil, 0},
		{"what is no message's id", "s", []fastpubsub.ID{foreign, {}}, 0},
		{"what this subscription has not delivered", "other", ids, 0},
		{"what is not delivered yet", "s", ids[2:], 0},
		{"what comes twice counts once", "s", []fastpubsub.ID{ids[0], foreign, ids[0]}, 1},
		{"what was acked before", "s", ids[:2], 1},
		{"everything, by now", "s", ids, 0},
	} {
		if n, err := b.Ack(t.Context(), tt.sub, tt.ids); n != tt.want || err != nil {
			t.Errorf("%s: acked %d, %v, want %d", tt.reason, n, err, tt.want)
		}
	}
}

// TestAckTx shows the fence: of two transactions that do the same work, one acks.
func TestAckTx(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			b, db := newBroker(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			ids := publish(t, b, "t", numbered(0, 2)...)
			consume(t, b, "s", 2)
			ack := func() (pgx.Tx, int, error) {
				tx := begin(t, db, pgx.TxOptions{IsoLevel: level})
				n, err := b.AckTx(t.Context(), tx, "s", ids)
				return tx, n, err
			}
			first, n, err := ack()
			if n != 2 || err != nil {
				t.Fatalf("the first acked %d, %v", n, err)
			}
			if err := first.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			second, n, err := ack()
			if n != 2 || err != nil {
				t.Fatalf("after a rollback the second acked %d, %v", n, err)
			}
			commit(t, second)
			if _, n, err := ack(); n != 0 || err != nil {
				t.Errorf("after a commit the third acked %d, %v", n, err)
			}
		})
	}
}

func TestConsumeWaits(t *testing.T) {
	t.Parallel()
	b, _ := newBroker(t, func(c *pgxpool.Config) { c.MaxConns = 2 })
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	// More wait than there are connections.
	type answer struct {
		msgs []fastpubsub.Message
		err  error
	}
	answers := make(chan answer)
	for range 10 {
		go func() {
			msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: 1, Wait: time.Minute})
			answers <- answer{msgs, err}
		}()
	}
	want := publish(t, b, "t", numbered(0, 10)...)
	var got []fastpubsub.ID
	for range 10 {
		a := <-answers
		if a.err != nil || len(a.msgs) != 1 {
			t.Fatalf("got %d messages, %v", len(a.msgs), a.err)
		}
		got = append(got, a.msgs[0].ID)
	}
	slices.SortFunc(got, func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) })
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	start := time.Now()
	msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Wait: 200 * time.Millisecond})
	if len(msgs) > 0 || err != nil || time.Since(start) < 200*time.Millisecond {
		t.Errorf("got %d messages, %v, after %v", len(msgs), err, time.Since(start))
	}
}

// TestEmptyPoll looks at what a poll that finds nothing leaves: no row, no write-ahead log, no transaction id.
func TestEmptyPoll(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, map[string]string{"autovacuum": "off"})
	b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	createSubscription(t, b, "filtered", "t", `{"n":[1]}`)
	publish(t, b, "t", numbered(0, 5)...)
	drain(t, b, "s", 2)
	drain(t, b, "filtered", 2)
	exec(t, db, `CHECKPOINT`)
	const state = `SELECT pg_snapshot_xmax(pg_current_snapshot())::text || ' ' || (SELECT count(*) FROM {schema}.cursors)`
	before, beforeLSN := query[string](t, db, state), query[string](t, db, `SELECT pg_current_wal_insert_lsn()::text`)
	for range 100 {
		consume(t, b, "s", 100)
		consume(t, b, "filtered", 100)
	}
	after := query[string](t, db, state)
	if before != after {
		t.Errorf("state was %s, is %s", before, after)
	}
	// The background writer logs what transactions run, now and then.
	if written := query[int](t, db, `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::text::pg_lsn)`, beforeLSN); written > 1000 {
		t.Errorf("200 empty polls wrote %d bytes of write-ahead log", written)
	}
}

func TestSchemaVersion(t *testing.T) {
	t.Parallel()
	_, db := newBroker(t)
	for _, tt := range []struct {
		reason string
		sql    string
		want   error
	}{
		{"as migrated", `SELECT 1`, nil},
		{"made by a newer release that still serves this one", `UPDATE {schema}.log_state SET version = 1000000`, nil},
		{"made by a newer release", `UPDATE {schema}.log_state SET oldest_binary = 1000000`, fastpubsub.ErrBinaryOutdated},
		{"made by an older release", fmt.Sprintf(`UPDATE {schema}.log_state SET version = %d, oldest_binary = 1`, store.Version-1), fastpubsub.ErrSchemaOutdated},
		{"a migration that was cut off", `DELETE FROM {schema}.log_state`, fastpubsub.ErrSchemaOutdated},
		{"not there", `DROP TABLE {schema}.log_state`, fastpubsub.ErrSchemaOutdated},
	} {
		exec(t, db, tt.sql)
		b, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Check(t.Context()); !errors.Is(err, tt.want) {
			t.Errorf("%s: check returned %v, want %v", tt.reason, err, tt.want)
		}
		if _, err := b.ListTopics(t.Context(), fastpubsub.ListOptions{}); !errors.Is(err, tt.want) {
			t.Errorf("%s: list returned %v, want %v", tt.reason, err, tt.want)
		}
		// In the caller's transaction, which goes on.
		tx := begin(t, db, pgx.TxOptions{})
		b.PublishTx(t.Context(), tx, "t", numbered(0, 1)...)
		if _, err := tx.Exec(t.Context(), `SELECT 1`); err != nil {
			t.Errorf("%s: the transaction was ended: %v", tt.reason, err)
		}
		tx.Rollback(t.Context())
	}
}
