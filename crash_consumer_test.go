package fastpubsub_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
)

// childEnv tells this program that it is a consumer, and which, as a childConfig in JSON.
const childEnv = "FASTPUBSUB_TEST_CONSUMER"

type childConfig struct {
	URL, Schema string
	Ledger      string // a file
	Name        string // of the consumer, and of its connections
	Seed        uint64
	// Poison makes it a consumer that acks one message at a time until there are none, and dies of that message. Without it
	// it works until it is killed.
	Poison int
	// KillAt makes it one that receives in transactions, and dies at this point; see killPoints.
	KillAt string
}

// TestCrashChild is no test but the consumer that others kill.
func TestCrashChild(t *testing.T) {
	text, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	crashtest.ExitWithParent()
	var config childConfig
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	if err := config.run(t); err != nil {
		t.Fatal(err)
	}
}

func (c *childConfig) run(t *testing.T) error {
	poolConfig, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return err
	}
	poolConfig.ConnConfig.RuntimeParams["search_path"] = ""
	poolConfig.ConnConfig.RuntimeParams["application_name"] = c.Name
	if c.KillAt != "" {
		return c.untilKilled(t, poolConfig)
	}
	b, _ := brokerOn(t, c.Schema, poolConfig)
	f, err := crashtest.OpenFile(c.Ledger)
	if err != nil {
		return err
	}
	defer f.Close()
	if c.Poison != 0 {
		return c.untilPoison(t.Context(), b, f.Add)
	}
	w := crashtest.Worker{Name: c.Name, Broker: b, Subscription: crashtest.Subscription, Rand: rand.New(rand.NewPCG(c.Seed, 0)), Record: f.Add}
	for {
		if err := w.Step(t.Context()); err != nil {
			return err
		}
	}
}

func (c *childConfig) untilPoison(ctx context.Context, b *fastpubsub.Broker, r crashtest.Recorder) error {
	for {
		msgs, err := r.Consume(ctx, b, crashtest.Subscription, fastpubsub.ConsumeOptions{Consumer: c.Name, Max: 1})
		if err != nil || len(msgs) == 0 {
			return err
		}
		if msgs[0].N == c.Poison {
			return killSelf()
		}
		if err := r.Ack(ctx, b, crashtest.Subscription, c.Name, msgs); err != nil {
			return err
		}
	}
}

func killSelf() error {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		return err
	}
	if err := self.Kill(); err != nil {
		return err
	}
	select {} // it takes effect somewhat later
}

func startConsumer(t *testing.T, config childConfig) *crashtest.Child {
	t.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return crashtest.StartChild(t, childEnv+"="+string(text))
}

// newLedgerFile makes the file that children write to.
func newLedgerFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConsumerKilled kills consumer processes at random moments, while messages are published: each message is acked once,
// or dead after as many attempts as are allowed, and none that was acked comes back.
func TestConsumerKilled(t *testing.T) {
	t.Parallel()
	const (
		consumers = 3
		kills     = 12
		patience  = 2 * time.Minute
	)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	b, db := newBroker(t)
	clock := db.StopClock(t)
	crashtest.Create(t, b)
	path := newLedgerFile(t)
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}

	var names []string
	start := func() *crashtest.Child {
		name := fmt.Sprintf("%s_%d", db.Schema, len(names))
		names = append(names, name)
		return startConsumer(t, childConfig{URL: db.URL, Schema: db.Schema, Ledger: path, Name: name, Seed: rng.Uint64()})
	}
	var children [consumers]*crashtest.Child
	for i := range children {
		children[i] = start()
	}
	// The ledger's growth is what decides about all the rest: when to publish, to move the clock and to kill.
	const moveEach = 500 // bytes
	var published crashtest.Memory
	nextKill, moved, n := int64(4_000), int64(0), 1
	for end := time.Now().Add(patience); len(names) < consumers+kills; {
		if time.Now().After(end) {
			t.Fatalf("%d consumers killed and %d bytes written after %v", len(names)-consumers, size(), patience)
		}
		if int64(n) < 50+size()/150 {
			k := 1 + rng.IntN(5)
			if err := crashtest.Recorder(published.Add).Publish(t.Context(), b, crashtest.Topic, "publisher", n, k); err != nil {
				t.Fatal(err)
			}
			n += k
		}
		for ; moved < size(); moved += moveEach {
			if err := clock.Move(t.Context(), upTo(rng, 100*time.Millisecond)); err != nil {
				t.Fatal(err)
			}
		}
		if size() < nextKill {
			time.Sleep(upTo(rng, 2*time.Millisecond))
			continue
		}
		i := rng.IntN(consumers)
		if err := children[i].Kill(); err != nil {
			t.Fatalf("a consumer ended by itself: %v", err)
		}
		children[i] = start()
		nextKill = size() + 4_000 + rng.Int64N(10_000)
	}
	for _, c := range children {
		if err := c.Kill(); err != nil {
			t.Fatalf("a consumer ended by itself: %v", err)
		}
	}
	crashtest.WaitForBackends(t, db, names...)
	entries, err := crashtest.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := crashtest.Audit(t, b, clock, append(published.Entries(), entries...)).Err; err != nil {
		t.Error(err)
	}
}

// TestPoison has a message that kills each consumer that gets it: it becomes a dead letter after as many consumers as it has
// attempts, and the others are all acked.
func TestPoison(t *testing.T) {
	t.Parallel()
	const poison = 5
	b, db := newBroker(t)
	clock := db.StopClock(t)
	crashtest.Create(t, b)
	path := newLedgerFile(t)
	var published crashtest.Memory
	if err := crashtest.Recorder(published.Add).Publish(t.Context(), b, crashtest.Topic, "publisher", 1, 10); err != nil {
		t.Fatal(err)
	}
	var names []string
	deaths := 0
	for range crashtest.Attempts + 1 {
		name := fmt.Sprintf("%s_%d", db.Schema, len(names))
		names = append(names, name)
		child := startConsumer(t, childConfig{URL: db.URL, Schema: db.Schema, Ledger: path, Name: name, Poison: poison})
		switch state, output := child.Outcome(); {
		case !state.Exited():
			deaths++
		case !state.Success():
			t.Fatalf("%v: %s", state, output)
		}
		if err := clock.Move(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if deaths != crashtest.Attempts {
		t.Errorf("%d consumers died, want %d", deaths, crashtest.Attempts)
	}
	crashtest.WaitForBackends(t, db, names...)
	wantMetrics(t, b, "s", fastpubsub.Metrics{Acked: 9, DeadLetters: 1})
	letters, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(letters) != 1 || string(letters[0].Payload) != string(crashtest.Payload(poison)) ||
		letters[0].DeliveryAttempts != crashtest.Attempts || letters[0].LastError != "ack deadline passed" {
		t.Errorf("dead letters: %+v", letters)
	}
	entries, err := crashtest.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := crashtest.Audit(t, b, clock, append(published.Entries(), entries...)).Err; err != nil {
		t.Error(err)
	}
}

// upTo returns a duration shorter than d.
func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
