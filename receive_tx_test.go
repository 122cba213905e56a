package fastpubsub_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// An effect is a row for each time that a message was handled. Nothing in the table keeps it from being two.
const createEffects = `CREATE TABLE {schema}.effects (n int)`

func writeEffect(ctx context.Context, tx pgx.Tx, schema string, msg fastpubsub.Message) error {
	var p struct{ N int }
	if err := json.Unmarshal(msg.Payload, &p); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "INSERT INTO "+pgx.Identifier{schema, "effects"}.Sanitize()+" VALUES ($1)", p.N)
	return err
}

// receiveTx receives until the effects are so many, and checks that each message has one.
func receiveTx(t *testing.T, b *fastpubsub.Broker, db *storetest.DB, sub string, want int) {
	t.Helper()
	receivedUntil(t, func(ctx context.Context) error {
		return b.ReceiveTx(ctx, sub, func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
			return writeEffect(ctx, tx, db.Schema, msg)
		}, fastpubsub.ReceiveOptions{Concurrency: 4})
	}, func() bool { return query[int](t, db, `SELECT count(*) FROM {schema}.effects`) >= want })
	checkEffects(t, b, db, sub, want)
}

func checkEffects(t *testing.T, b *fastpubsub.Broker, db *storetest.DB, sub string, want int) {
	t.Helper()
	rows, messages := query[int](t, db, `SELECT count(*) FROM {schema}.effects`), query[int](t, db, `SELECT count(DISTINCT n) FROM {schema}.effects`)
	if rows != want || messages != want {
		t.Errorf("%d effects of %d messages, want one of each of %d", rows, messages, want)
	}
	m, err := b.Metrics(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	if int(m.Acked) != want || m.Available+m.Delivered+m.DeadLetters != 0 {
		t.Errorf("metrics are %+v, want %d acked", m, want)
	}
}

func TestReceiveTx(t *testing.T) {
	checkLeaks(t)
	b, db := newBroker(t)
	exec(t, db, createEffects)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	publish(t, b, "t", numbered(0, 200)...)
	receiveTx(t, b, db, "s", 200)
}

// TestReceiveTxFails lets handlers fail in all ways: nothing that they wrote remains, and the message comes again, or is a dead
// letter with the error.
func TestReceiveTxFails(t *testing.T) {
	checkLeaks(t)
	b, db := newBroker(t)
	exec(t, db, createEffects)
	exec(t, db, `CREATE TABLE {schema}.once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)`)
	exec(t, db, `INSERT INTO {schema}.once VALUES (1)`)
	createTopic(t, b, "t")
	sub := fastpubsub.Subscription{ID: "s", TopicID: "t"}
	sub.MaxDeliveryAttempts = 1
	if _, err := b.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	publish(t, b, "t", numbered(0, 6)...)
	var snoozed atomic.Int32
	receivedUntil(t, func(ctx context.Context) error {
		return b.ReceiveTx(ctx, "s", func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
			if err := writeEffect(ctx, tx, db.Schema, msg); err != nil {
				return err
			}
			switch string(msg.Payload) {
			case `{"n":0}`:
				return errors.New("no luck")
			case `{"n":1}`:
				panic("a mistake")
			case `{"n":2}`: // the commit fails
				_, err := tx.Exec(ctx, db.SQL(`INSERT INTO {schema}.once VALUES (1)`))
				return err
			case `{"n":3}`: // the handler does not say what went wrong
				_, _ = tx.Exec(ctx, `SELECT 1 / 0`)
				return nil
			case `{"n":4}`:
				if snoozed.Add(1) == 1 {
					return fastpubsub.Snooze(time.Nanosecond)
				}
			}
			return nil
		}, fastpubsub.ReceiveOptions{Concurrency: 2})
	}, func() bool {
		return query[int](t, db, `SELECT count(*) FROM {schema}.deliveries WHERE state = 'dead'`) == 4 && snoozed.Load() == 2
	})
	letters, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, letter := range letters {
		want := map[string]string{`{"n":0}`: "no luck", `{"n":1}`: "panic: a mistake\n", `{"n":2}`: "once_n_key", `{"n":3}`: "commit"}[string(letter.Payload)]
		if want == "" || !strings.Contains(letter.LastError, want) {
			t.Errorf("%s is a dead letter with error %q, want %q", letter.Payload, letter.LastError, want)
		}
	}
	if got := query[string](t, db, `SELECT string_agg(n::text, ',' ORDER BY n) FROM {schema}.effects`); got != "4,5" {
		t.Errorf("messages %s have effects, want 4,5", got)
	}
}

// TestReceiveTxNeighbours lets each handler of a batch wait for the next one's commit.
func TestReceiveTxNeighbours(t *testing.T) {
	checkLeaks(t)
	b, db := newBroker(t)
	exec(t, db, createEffects)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	const n = 5
	publish(t, b, "t", numbered(0, n)...)
	receivedUntil(t, func(ctx context.Context) error {
		return b.ReceiveTx(ctx, "s", func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
			var p struct{ N int }
			if err := json.Unmarshal(msg.Payload, &p); err != nil {
				return err
			}
			for p.N < n-1 {
				var there bool
				err := db.Pool.QueryRow(ctx, db.SQL(`SELECT EXISTS (SELECT FROM {schema}.effects WHERE n = $1)`), p.N+1).Scan(&there)
				if err != nil {
					return err
				}
				if there {
					break
				}
				time.Sleep(time.Millisecond)
			}
			return writeEffect(ctx, tx, db.Schema, msg)
		}, fastpubsub.ReceiveOptions{Concurrency: n})
	}, func() bool { return query[int](t, db, `SELECT count(*) FROM {schema}.effects`) >= n })
	checkEffects(t, b, db, "s", n)
}

// TestReceiveTxOneCommits lets the ack deadline pass while a handler works: nobody else gets the message before its transaction
// has ended, and then not at all.
func TestReceiveTxOneCommits(t *testing.T) {
	checkLeaks(t)
	b, db := newBroker(t)
	exec(t, db, createEffects)
	move := stopClock(t, db)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	publish(t, b, "t", numbered(0, 1)...)
	working, finish := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := b.ReceiveTx(ctx, "s", func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
			close(working)
			<-finish
			return writeEffect(ctx, tx, db.Schema, msg)
		}, fastpubsub.ReceiveOptions{})
		if err != nil {
			t.Error(err)
		}
	})
	<-working
	move(time.Hour)
	for range 3 {
		if msgs := consume(t, b, "s", 10); len(msgs) != 0 {
			t.Errorf("somebody else gets %v", msgs)
		}
	}
	cancel()
	close(finish)
	wg.Wait()
	move(time.Hour)
	if msgs := consume(t, b, "s", 10); len(msgs) != 0 {
		t.Errorf("somebody else gets %v after the commit", msgs)
	}
	checkEffects(t, b, db, "s", 1)
}

// TestReceiveTxLate hands a message that waits for its handler to somebody else: the handler does not see it.
func TestReceiveTxLate(t *testing.T) {
	checkLeaks(t)
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	ids := publish(t, b, "t", numbered(0, 1)...)
	taken, goOn := make(chan struct{}), make(chan struct{})
	config := db.Pool.Config()
	config.ConnConfig.Tracer = beginTracer(func() {
		close(taken)
		<-goOn
	})
	late, _ := brokerOn(t, db.Schema, config)
	ctx, cancel := context.WithCancel(t.Context())
	var handled atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		err := late.ReceiveTx(ctx, "s", func(context.Context, pgx.Tx, fastpubsub.Message) error {
			handled.Add(1)
			return nil
		}, fastpubsub.ReceiveOptions{})
		if err != nil {
			t.Error(err)
		}
	})
	<-taken
	if n, err := b.Ack(t.Context(), "s", ids); n != 1 || err != nil {
		t.Errorf("somebody else acks %d, %v", n, err)
	}
	cancel()
	close(goOn)
	wg.Wait()
	if handled.Load() != 0 {
		t.Error("the handler got a message that was acked")
	}
}

// beginTracer calls do before the first transaction of a handler begins.
func beginTracer(do func()) pgx.QueryTracer {
	return &pointTracer{at: func(point string) {
		if point == "before begin" {
			do()
		}
	}}
}

// A pointTracer calls at with the name of each point that ReceiveTx passes on its connections.
type pointTracer struct{ at func(point string) }

type tracedSQL struct{}

func pointOf(sql string) string {
	switch {
	case strings.EqualFold(sql, "begin"):
		return "begin"
	case strings.Contains(sql, ".ack("), strings.Contains(sql, ".ack_one("):
		return "ack"
	case strings.Contains(sql, ".claim("):
		return "claim"
	case strings.EqualFold(sql, "commit"):
		return "commit"
	}
	return ""
}

func (p *pointTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	point := pointOf(data.SQL)
	if point != "" {
		p.at("before " + point)
	}
	return context.WithValue(ctx, tracedSQL{}, point)
}

func (p *pointTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if point, _ := ctx.Value(tracedSQL{}).(string); point != "" {
		p.at("after " + point)
	}
}

// TraceBatchStart tells of a claim, or of a transaction that begins with its ack.
func (p *pointTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	point := ""
	for _, q := range data.Batch.QueuedQueries {
		if name := pointOf(q.SQL); name == "claim" || name == "begin" {
			point = name
			p.at("before " + point)
			break
		}
	}
	return context.WithValue(ctx, tracedSQL{}, point)
}

// TraceBatchQuery comes when a result is read. Begin and ack are sent together, so the ack may have happened when its turn comes.
func (p *pointTracer) TraceBatchQuery(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	if batch, _ := ctx.Value(tracedSQL{}).(string); batch != "begin" {
		return
	}
	switch pointOf(data.SQL) {
	case "begin":
		p.at("after begin")
		p.at("before ack")
	case "ack":
		p.at("after ack")
	}
}

func (p *pointTracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	if batch, _ := ctx.Value(tracedSQL{}).(string); batch == "claim" {
		p.at("after claim")
	}
}

// killPoints are where a process that receives in transactions dies.
var killPoints = []string{
	"before claim", "after claim", "before begin", "after begin", "before ack", "after ack",
	"before the handler writes", "after the handler wrote", "before commit", "after commit",
}

// TestReceiveTxKilled kills a process at every point of its work. Whatever it had done by then, each message has one effect in
// the end.
func TestReceiveTxKilled(t *testing.T) {
	for _, point := range killPoints {
		t.Run(point, func(t *testing.T) {
			checkLeaks(t)
			b, db := newBroker(t)
			exec(t, db, createEffects)
			move := stopClock(t, db)
			createTopic(t, b, crashtest.Topic)
			createSubscription(t, b, crashtest.Subscription, crashtest.Topic, noFilter)
			const messages = 20
			publish(t, b, crashtest.Topic, numbered(0, messages)...)
			name := "killed " + db.Schema[max(0, len(db.Schema)-10):]
			child := startConsumer(t, childConfig{URL: db.URL, Schema: db.Schema, Name: name, KillAt: point})
			state, output := child.Outcome()
			if state.Success() || strings.Contains(output, "FAIL") || strings.Contains(output, "panic") {
				t.Fatalf("the child ended with %v:\n%s", state, output)
			}
			crashtest.WaitForBackends(t, db, name)
			move(time.Hour)
			receiveTx(t, b, db, crashtest.Subscription, messages)
		})
	}
}

// untilKilled receives, and dies when it passes a point for the third time.
func (c *childConfig) untilKilled(t *testing.T, config *pgxpool.Config) error {
	var passed atomic.Int32
	at := func(point string) {
		if point == c.KillAt && passed.Add(1) == 3 {
			_ = killSelf() // the parent sees it
		}
	}
	config.MaxConns = 10
	config.ConnConfig.Tracer = &pointTracer{at}
	b, _ := brokerOn(t, c.Schema, config)
	return b.ReceiveTx(t.Context(), crashtest.Subscription, func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
		at("before the handler writes")
		err := writeEffect(ctx, tx, c.Schema, msg)
		at("after the handler wrote")
		return err
	}, fastpubsub.ReceiveOptions{Concurrency: 2})
}
