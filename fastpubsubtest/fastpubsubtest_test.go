package fastpubsubtest_test

import (
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/fastpubsubtest"
	"github.com/fastpubsub/fastpubsub/internal/leaktest"
)

const schemas = `SELECT count(*) FROM pg_namespace WHERE nspname = ANY ($1)`

func TestNew(t *testing.T) {
	t.Parallel()
	outside := newKit(t)
	var names []string
	t.Run("A very long name, with Capitals, ünïcode and \"quotes\", that no identifier could hold", func(t *testing.T) {
		kit, other := newKit(t), newKit(t)
		names = []string{kit.Schema, kit.Tables, other.Schema, other.Tables}
		exec(t, kit, "CREATE TABLE invoices (n int)")
		exec(t, other, "CREATE TABLE invoices (n int)") // in a schema of its own
		publish(t, kit, "orders", `{"n":1}`)
		if msgs := consume(t, other, "emails"); len(msgs) > 0 {
			t.Errorf("one kit has the messages of another: %s", msgs[0].Payload)
		}
		if msgs := consume(t, kit, "emails"); len(msgs) != 1 {
			t.Errorf("%d messages, want 1", len(msgs))
		}
		if n := count(t, outside, schemas, names); n != 4 {
			t.Errorf("there are %d schemas, want 4", n)
		}
	})
	if n := count(t, outside, schemas, names); n != 0 {
		t.Errorf("%d of the schemas are still there: %q", n, names)
	}
}

func TestNewOnPool(t *testing.T) {
	t.Parallel()
	owner := newKit(t)
	var schema string
	said := fake(t.Name(), func(t testing.TB) {
		kit := fastpubsubtest.New(t, fastpubsubtest.Options{Pool: owner.Pool})
		schema = kit.Schema
		kit.Subscribe(t, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
		publish(t, kit, "orders", `{"n":1}`)
		if drained := kit.Drain(t, "emails", succeed, fastpubsubtest.DrainOptions{}); drained.Acked != 1 {
			t.Errorf("%d messages acked, want 1", drained.Acked)
		}
		if kit.Tables != "" || kit.URL != "" {
			t.Errorf("there are tables %q and an address %q", kit.Tables, kit.URL)
		}
		kit.LoseCommit(t)
	})
	if want := "LoseCommit: the Kit works on a pool that was given to it, whose connections it cannot break: use Options.URL"; said != want {
		t.Errorf("it said %q, want %q", said, want)
	}
	if n := count(t, owner, schemas, []string{schema}); n != 0 {
		t.Error("the schema is still there")
	}
}

func TestNewConfigure(t *testing.T) {
	t.Parallel()
	kit := fastpubsubtest.New(t, fastpubsubtest.Options{
		Configure: func(c *pgxpool.Config) { c.MaxConns = 3 },
		Config:    fastpubsub.Config{SubscriptionDefaults: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 17}},
	})
	if n := kit.Pool.Config().MaxConns; n != 3 {
		t.Errorf("the pool has %d connections, want 3", n)
	}
	if n := kit.Subscribe(t, fastpubsub.Subscription{ID: "emails", TopicID: "orders"}).MaxDeliveryAttempts; n != 17 {
		t.Errorf("the subscription has %d attempts, want 17", n)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	pool := newKit(t).Pool
	for name, tc := range map[string]struct {
		options fastpubsubtest.Options
		want    string
	}{
		"URLAndPool":       {fastpubsubtest.Options{URL: "postgres://127.0.0.1:1/none", Pool: pool}, "both a URL and a Pool"},
		"ConfigureAndPool": {fastpubsubtest.Options{Pool: pool, Configure: func(*pgxpool.Config) {}}, "Options.Configure"},
		"Schema":           {fastpubsubtest.Options{Config: fastpubsub.Config{Schema: "mine"}}, `Options.Config.Schema must be empty, since each Kit has a schema of its own, not "mine"`},
		"Config":           {fastpubsubtest.Options{Config: fastpubsub.Config{Maintenance: fastpubsub.MaintenanceSettings{SlotAge: -1}}}, "maintenance.slot_age"},
		"Away":             {fastpubsubtest.Options{URL: "postgres://127.0.0.1:1/none"}, "connect"},
		"Address":          {fastpubsubtest.Options{URL: "postgres://127.0.0.1:port/none"}, "parse"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			said := fake(t.Name(), func(t testing.TB) {
				fastpubsubtest.New(t, tc.options)
				t.Errorf("it went on")
			})
			mustSay(t, said, "fastpubsubtest: ", tc.want)
			if strings.Contains(said, "drop schema") {
				t.Errorf("it says what it could not undo, too: %s", said)
			}
		})
	}
}

// TestLeftOpen has a transaction that its test forgot, with a lock on a table of the kit.
func TestLeftOpen(t *testing.T) {
	t.Parallel()
	outside := newKit(t)
	var names []string
	said := fake(t.Name(), func(t testing.TB) {
		kit := newKit(t)
		names = []string{kit.Schema, kit.Tables}
		tx, err := kit.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kit.Broker.PublishTx(t.Context(), tx, "orders", fastpubsub.JSON(map[string]int{"n": 1})); err != nil {
			t.Fatal(err)
		}
	})
	mustSay(t, said, "1 connections of the pool were not given back: a transaction or rows were not closed")
	if n := count(t, outside, schemas, names); n != 0 {
		t.Errorf("%d of the schemas are still there", n)
	}
}

// TestWithoutRun runs a test in a process whose TestMain forgets Run and that has no database.
func TestWithoutRun(t *testing.T) {
	t.Parallel()
	cmd := osexec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNewConfigure$", "-test.v")
	cmd.Env = append(os.Environ(), withoutRun+"=1", "FASTPUBSUB_TEST_DATABASE_URL=")
	out, _ := cmd.CombinedOutput()
	mustSay(t, string(out), "--- FAIL: TestNewConfigure", "FASTPUBSUB_TEST_DATABASE_URL is not set",
		"add func TestMain(m *testing.M) { os.Exit(fastpubsubtest.Run(m)) } to the package")
}

// TestWithURL runs a test in a process that is told of this one's database.
func TestWithURL(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	cmd := osexec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNewConfigure$", "-test.v")
	cmd.Env = append(os.Environ(), withoutRun+"=1", "FASTPUBSUB_TEST_DATABASE_URL="+kit.URL)
	out, _ := cmd.CombinedOutput()
	mustSay(t, string(out), "--- PASS: TestNewConfigure")
}

func TestSubscribeRefuses(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	said := fake(t.Name(), func(t testing.TB) {
		kit.Subscribe(t, fastpubsub.Subscription{ID: "emails", TopicID: "orders"})
	})
	mustSay(t, said, "Subscribe: ", "emails", "already exists")
}

func TestAdvance(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	start := kit.Now(t)
	publish(t, kit, "orders", `{"n":1}`)
	first := consume(t, kit, "emails")
	if len(first) != 1 || !first[0].CreatedAt.Equal(start) {
		t.Fatalf("consumed %+v, want one of %v", first, start)
	}
	kit.Advance(t, time.Minute-time.Microsecond)
	if msgs := consume(t, kit, "emails"); len(msgs) > 0 {
		t.Fatal("delivered before the ack deadline")
	}
	kit.Advance(t, time.Microsecond)
	again := consume(t, kit, "emails")
	if len(again) != 1 || again[0].DeliveryAttempts != 2 {
		t.Fatalf("consumed %+v after the ack deadline, want the second delivery", again)
	}
	if n, err := kit.Broker.Nack(t.Context(), "emails", []fastpubsub.Delivery{again[0].Delivery}, fastpubsub.NackOptions{Delay: time.Hour}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	kit.Advance(t, time.Hour-time.Microsecond)
	if msgs := consume(t, kit, "emails"); len(msgs) > 0 {
		t.Fatal("delivered before its delay is over")
	}
	kit.Advance(t, time.Microsecond)
	if again = consume(t, kit, "emails"); len(again) != 1 || again[0].DeliveryAttempts != 3 {
		t.Fatalf("consumed %+v after the delay, want the third delivery", again)
	}
	if got, want := kit.Now(t).Sub(start), time.Hour+time.Minute; got != want {
		t.Errorf("the clock has moved by %v, want %v", got, want)
	}
	mustSay(t, fake(t.Name(), func(t testing.TB) { kit.Advance(t, -1) }), "Advance: the clock must not go back, as it would by -1ns")
}

// TestAdvanceRetention goes by the ages of slots.
func TestAdvanceRetention(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	publish(t, kit, "orders", `{"n":1}`)
	kit.Drain(t, "emails", succeed, fastpubsubtest.DrainOptions{})
	cleanup := func() fastpubsub.Freed {
		t.Helper()
		freed, err := kit.Broker.CleanupAcked(t.Context(), 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return freed
	}
	kit.Advance(t, 23*time.Hour)
	if freed := cleanup(); freed.Rotated != 0 {
		t.Fatalf("it was too early, but %+v", freed)
	}
	kit.Advance(t, time.Hour)
	if freed := cleanup(); freed.Rotated == 0 {
		t.Fatalf("nothing was done after a day: %+v", freed)
	}
	for range 3 { // Patience is an hour
		kit.Advance(t, 2*time.Hour)
		cleanup()
	}
	kit.RequireNotPublished(t, "orders", fastpubsubtest.Match{})
}

// TestAdvanceWakes has a consumer that waits.
func TestAdvanceWakes(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	publish(t, kit, "orders", `{"n":1}`)
	msg := consume(t, kit, "emails")[0]
	if _, err := kit.Broker.Nack(t.Context(), "emails", []fastpubsub.Delivery{msg.Delivery}, fastpubsub.NackOptions{}); err != nil {
		t.Fatal(err)
	}
	got := make(chan []fastpubsub.Message)
	go func() {
		msgs, err := kit.Broker.Consume(t.Context(), "emails", fastpubsub.ConsumeOptions{Consumer: "waiting", Wait: time.Minute})
		if err != nil {
			t.Error(err)
		}
		got <- msgs
	}()
	kit.Advance(t, 5*time.Second)
	if msgs := <-got; !slices.Equal(payloads(msgs), []string{`{"n":1}`}) {
		t.Errorf("consumed %q", payloads(msgs))
	}
}
