package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// blindPoll makes polls find nothing, so that consumers can only be woken.
func blindPoll(t *testing.T, db *storetest.DB) {
	t.Helper()
	exec(t, db, `
CREATE OR REPLACE FUNCTION {schema}.look(sub_ids text[])
RETURNS TABLE (sub_id text, topic_id text, filtered boolean, ready boolean, due_in_seconds float8)
LANGUAGE sql AS $$
    SELECT s.id, t.id, s.filter_path IS NOT NULL, false, NULL::float8
    FROM {schema}.subscriptions s JOIN {schema}.topics t ON t.num = s.topic_num WHERE s.id = ANY (sub_ids)
$$`)
}

// otherProcess is a broker that shares nothing with another one on the same schema but the database.
func otherProcess(t *testing.T, db *storetest.DB, config fastpubsub.Config) *fastpubsub.Broker {
	t.Helper()
	poolConfig := db.Pool.Config()
	pool, err := pgxpool.NewWithConfig(t.Context(), poolConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	config.Schema = db.Schema
	b, err := fastpubsub.New(pool, config)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// running runs a broker until the test has ended.
func running(t *testing.T, b *fastpubsub.Broker) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

func waitForListening(t *testing.T, b *fastpubsub.Broker, want bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for b.Listening() != want {
		if time.Now().After(deadline) {
			t.Fatalf("Listening is not %v", want)
		}
		time.Sleep(time.Millisecond)
	}
}

// waiting starts a consumer that waits, and returns once it does. What it got is what the function returns.
func waiting(t *testing.T, b *fastpubsub.Broker, subscriptionID string) func() []fastpubsub.Message {
	t.Helper()
	type answer struct {
		msgs []fastpubsub.Message
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		msgs, err := b.Consume(t.Context(), subscriptionID, fastpubsub.ConsumeOptions{Consumer: "waiting", Wait: 40 * time.Second})
		done <- answer{msgs, err}
	}()
	deadline := time.Now().Add(30 * time.Second)
	for fastpubsub.Waiting(b, subscriptionID) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("it does not wait")
		}
		time.Sleep(time.Millisecond)
	}
	return func() []fastpubsub.Message {
		t.Helper()
		a := <-done
		if a.err != nil {
			t.Fatal(a.err)
		}
		return a.msgs
	}
}

// TestWake lets everything wake a consumer that there is, with polls that find nothing.
func TestWake(t *testing.T) {
	quiet := fastpubsub.Config{Maintenance: fastpubsub.MaintenanceSettings{Off: true}}
	inTx := func(b *fastpubsub.Broker, end error) error {
		return b.InTx(context.Background(), pgx.TxOptions{}, func(tx pgx.Tx) error {
			_, err := b.PublishTx(context.Background(), tx, "t", numbered(0, 1)...)
			return errors.Join(err, end)
		})
	}
	beginFunc := func(b *fastpubsub.Broker, db *storetest.DB) error {
		return pgx.BeginFunc(context.Background(), db.Pool, func(tx pgx.Tx) error {
			_, err := b.PublishTx(context.Background(), tx, "t", numbered(0, 1)...)
			return err
		})
	}
	for _, tt := range []struct {
		name          string
		listen, other bool // the consumer's broker listens; another process publishes
		publish       func(b *fastpubsub.Broker, db *storetest.DB) error
	}{
		{"Publish", false, false, func(b *fastpubsub.Broker, _ *storetest.DB) error {
			_, err := b.Publish(context.Background(), "t", numbered(0, 1)...)
			return err
		}},
		{"InTx", false, false, func(b *fastpubsub.Broker, _ *storetest.DB) error { return inTx(b, nil) }},
		{"PublishTx", true, false, beginFunc},
		{"Publish in another process", true, true, func(b *fastpubsub.Broker, _ *storetest.DB) error {
			_, err := b.Publish(context.Background(), "t", numbered(0, 1)...)
			return err
		}},
		{"InTx in another process", true, true, func(b *fastpubsub.Broker, _ *storetest.DB) error { return inTx(b, nil) }},
		{"PublishTx in another process", true, true, beginFunc},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkLeaks(t)
			_, db := newBroker(t)
			blindPoll(t, db)
			b := otherProcess(t, db, quiet)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			publisher := b
			if tt.listen {
				running(t, b)
				waitForListening(t, b, true)
			}
			if tt.other {
				publisher = otherProcess(t, db, quiet)
				running(t, publisher)
				waitForListening(t, publisher, true)
			}
			got := waiting(t, b, "s")
			fastpubsub.WaitForTopic(b, "s")
			if tt.name == "InTx" { // what is rolled back wakes nobody
				failed := errors.New("no luck")
				if err := inTx(b, failed); !errors.Is(err, failed) {
					t.Fatalf("InTx returned %v", err)
				}
			}
			if err := tt.publish(publisher, db); err != nil {
				t.Fatal(err)
			}
			if msgs := got(); len(msgs) != 1 {
				t.Errorf("%d messages came", len(msgs))
			}
		})
	}
}

// TestPollFinds lets a consumer wait for what nobody tells: another process that does not run, a message that becomes due, a
// lease that runs out.
func TestPollFinds(t *testing.T) {
	for _, listen := range []bool{false, true} {
		t.Run(fmt.Sprintf("listening %v", listen), func(t *testing.T) {
			checkLeaks(t)
			b, db := newBroker(t)
			createTopic(t, b, "t")
			createSubscription(t, b, "s", "t", noFilter)
			if listen {
				running(t, b)
				waitForListening(t, b, true)
			}
			silent := otherProcess(t, db, fastpubsub.Config{})
			got := waiting(t, b, "s")
			fastpubsub.WaitForTopic(b, "s")
			ids := publish(t, silent, "t", numbered(0, 2)...)
			msgs := got()
			if len(msgs) != 2 {
				t.Fatalf("%d messages came", len(msgs))
			}
			if _, err := silent.Nack(t.Context(), "s", deliveries(msgs[:1]), fastpubsub.NackOptions{Delay: time.Second}); err != nil {
				t.Fatal(err)
			}
			if _, err := silent.Extend(t.Context(), "s", deliveries(msgs[1:]), time.Second); err != nil {
				t.Fatal(err)
			}
			seen := map[fastpubsub.ID]bool{}
			for len(seen) < 2 {
				// By now one of them may have come back already.
				msgs, err := b.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Wait: 30 * time.Second})
				if err != nil || len(msgs) == 0 {
					t.Fatalf("%d messages, %v", len(msgs), err)
				}
				for _, m := range msgs {
					seen[m.ID] = true
				}
			}
			if !seen[ids[0]] || !seen[ids[1]] {
				t.Errorf("%v came, want %v", seen, ids)
			}
		})
	}
}

func deliveries(msgs []fastpubsub.Message) []fastpubsub.Delivery {
	all := make([]fastpubsub.Delivery, len(msgs))
	for i, m := range msgs {
		all[i] = m.Delivery
	}
	return all
}

// listeners counts the connections that listen.
const listeners = `SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN "fastpubsub:' || $1 || '"'`

// TestListenAgain cuts the connection that listens.
func TestListenAgain(t *testing.T) {
	checkLeaks(t)
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	running(t, b)
	waitForListening(t, b, true)
	if n := query[int](t, db, listeners, db.Schema); n != 1 {
		t.Errorf("%d connections listen", n)
	}
	exec(t, db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN "fastpubsub:' || $1 || '"'`, db.Schema)
	waitForListening(t, b, false)
	waitForListening(t, b, true)
	if n := query[int](t, db, listeners, db.Schema); n != 1 {
		t.Errorf("%d connections listen after the first was cut", n)
	}
	publisher := otherProcess(t, db, fastpubsub.Config{})
	running(t, publisher)
	waitForListening(t, publisher, true)
	blindPoll(t, db)
	got := waiting(t, b, "s")
	fastpubsub.WaitForTopic(b, "s")
	publish(t, publisher, "t", numbered(0, 1)...)
	if msgs := got(); len(msgs) != 1 {
		t.Errorf("%d messages came", len(msgs))
	}
}

// TestAlone counts what a broker says while nobody else listens: nothing about messages. Whoever begins to listen finds all that
// was published until then, and hears of the rest.
func TestAlone(t *testing.T) {
	checkLeaks(t)
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	waitUntilAlone := func(want bool) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for fastpubsub.Alone(b) != want {
			if time.Now().After(deadline) {
				t.Fatalf("Alone is not %v", want)
			}
			time.Sleep(time.Millisecond)
		}
	}
	running(t, b)
	waitUntilAlone(true)

	conn, err := pgx.ConnectConfig(t.Context(), db.Pool.Config().ConnConfig.Copy())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), "LISTEN "+pgx.Identifier{"fastpubsub:" + db.Schema}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	publish(t, b, "t", numbered(0, 7)...)

	other := otherProcess(t, db, fastpubsub.Config{})
	running(t, other)
	waitForListening(t, other, true)
	waitUntilAlone(false)
	msgs, err := other.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "other", Max: 10})
	if err != nil || len(msgs) != 7 {
		t.Fatalf("%d messages came, %v", len(msgs), err)
	}
	blindPoll(t, db)
	got := waiting(t, other, "s")
	fastpubsub.WaitForTopic(other, "s")
	publish(t, b, "t", numbered(7, 2)...)
	if msgs := got(); len(msgs) != 2 {
		t.Errorf("%d messages came to the other one", len(msgs))
	}
	for {
		notification, err := conn.WaitForNotification(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, line, _ := strings.Cut(notification.Payload, "\nt"); line != "" {
			if line != "2 t" {
				t.Errorf("the first that was said of messages is %q", notification.Payload)
			}
			break
		}
	}
}

// TestListenBehindPgBouncer shows that a pool in transaction mode is noticed, and that a connection beside it helps.
func TestListenBehindPgBouncer(t *testing.T) {
	db := storetest.New(t)
	address := storetest.NewPgBouncer(t, db)
	direct := db.Pool.Config().ConnConfig.Copy()
	for i, tt := range []struct {
		name   string
		listen *pgx.ConnConfig
	}{{"listening beside it", direct}, {"listening through it", nil}} {
		t.Run(tt.name, func(t *testing.T) {
			checkLeaks(t)
			config, err := pgxpool.ParseConfig(address + "&default_query_exec_mode=exec")
			if err != nil {
				t.Fatal(err)
			}
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			b, err := fastpubsub.New(pool, fastpubsub.Config{Schema: db.Schema, Notifications: fastpubsub.NotificationSettings{Listen: tt.listen}})
			if err != nil {
				t.Fatal(err)
			}
			topic := fmt.Sprintf("t-%d", i)
			createTopic(t, b, topic)
			createSubscription(t, b, "s-"+topic, topic, noFilter)
			running(t, b)
			if tt.listen != nil {
				waitForListening(t, b, true)
			}
			got := waiting(t, b, "s-"+topic)
			if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				publishTx(t, b, tx, topic, numbered(0, 1)...)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if msgs := got(); len(msgs) != 1 {
				t.Errorf("%d messages came", len(msgs))
			}
			if tt.listen == nil && b.Listening() {
				t.Error("it seems to hear through PgBouncer in transaction mode")
			}
		})
	}
}
