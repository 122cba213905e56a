package fastpubsub_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	osexec "os/exec" // exec is one of the helpers here
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

const crashAttempts = 3 // what the subscriptions here allow

// createForCrash creates the topic and the subscription of a ledger, with deadlines of a few seconds.
func createForCrash(t *testing.T, b *fastpubsub.Broker) {
	t.Helper()
	createTopic(t, b, "t")
	_, err := b.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: "s", TopicID: "t",
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: crashAttempts,
			BackoffMin: time.Second, BackoffMax: 2 * time.Second, AckDeadline: 2 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
}

// A worker does to messages what consumers do.
type worker struct {
	name   string
	broker *fastpubsub.Broker
	rng    *rand.Rand
	record recorder
	kept   []told // extended, and acked later
}

// step takes some messages and acks, nacks, extends, gives back or forgets each.
func (w *worker) step(ctx context.Context) error {
	msgs, err := w.record.consume(ctx, w.broker, fastpubsub.ConsumeOptions{
		Consumer:    w.name,
		Max:         1 + w.rng.IntN(10),
		Wait:        20 * time.Millisecond,
		AckDeadline: time.Duration(w.rng.IntN(3)) * time.Second,
		Single:      w.rng.IntN(4) == 0,
	})
	if err != nil && !errors.Is(err, fastpubsub.ErrBusy) {
		return err
	}
	const (
		ack = iota
		nack
		nackDelayed
		nackAtOnce
		extend
		giveBack
		forget
	)
	var groups [forget + 1][]told
	weights := []int{ack, ack, ack, ack, ack, ack, nack, nackDelayed, nackAtOnce, extend, giveBack, forget}
	for _, m := range msgs {
		i := weights[w.rng.IntN(len(weights))]
		groups[i] = append(groups[i], m)
	}
	if len(w.kept) > 0 && w.rng.IntN(2) == 0 {
		groups[ack] = append(groups[ack], w.kept...)
		w.kept = nil
	}
	w.kept = append(w.kept, groups[extend]...)
	for _, action := range w.rng.Perm(len(groups)) {
		msgs := groups[action]
		if len(msgs) == 0 {
			continue
		}
		var err error
		switch action {
		case ack:
			for msgs := range slices.Chunk(msgs, 1+w.rng.IntN(len(msgs))) {
				if err = w.record.ack(ctx, w.broker, w.name, msgs); err != nil {
					break
				}
			}
		case nack:
			err = w.nack(ctx, msgs, fastpubsub.NackOptions{Error: w.name})
		case nackDelayed:
			err = w.nack(ctx, msgs, fastpubsub.NackOptions{Delay: 2 * time.Second})
		case nackAtOnce:
			err = w.nack(ctx, msgs, fastpubsub.NackOptions{Immediate: true})
		case extend:
			err = w.extend(ctx, callExtend, msgs, 3*time.Second)
		case giveBack:
			err = w.extend(ctx, callGiveBack, msgs, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) nack(ctx context.Context, msgs []told, options fastpubsub.NackOptions) error {
	return w.record.call(w.name, callNack, msgs, func() ([]told, int, error) {
		n, err := w.broker.Nack(ctx, "s", toldDeliveries(msgs), options)
		return msgs, n, err
	})
}

func (w *worker) extend(ctx context.Context, call string, msgs []told, deadline time.Duration) error {
	return w.record.call(w.name, call, msgs, func() ([]told, int, error) {
		n, err := w.broker.Extend(ctx, "s", toldDeliveries(msgs), deadline)
		return msgs, n, err
	})
}

func toldDeliveries(msgs []told) []fastpubsub.Delivery {
	all := make([]fastpubsub.Delivery, len(msgs))
	for i, m := range msgs {
		all[i] = fastpubsub.Delivery{ID: m.ID, DeliveryAttempts: m.Attempts}
	}
	return all
}

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
}

// TestCrashChild is no test but the consumer that others kill.
func TestCrashChild(t *testing.T) {
	text, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	go func() { // whoever holds the other end is gone
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
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
	b, _ := brokerOn(t, c.Schema, poolConfig)
	f, err := os.OpenFile(c.Ledger, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if c.Poison != 0 {
		return c.untilPoison(t.Context(), b, fileRecorder(f))
	}
	w := worker{name: c.Name, broker: b, rng: rand.New(rand.NewPCG(c.Seed, 0)), record: fileRecorder(f)}
	for {
		if err := w.step(t.Context()); err != nil {
			return err
		}
	}
}

func (c *childConfig) untilPoison(ctx context.Context, b *fastpubsub.Broker, r recorder) error {
	for {
		msgs, err := r.consume(ctx, b, fastpubsub.ConsumeOptions{Consumer: c.Name, Max: 1})
		if err != nil || len(msgs) == 0 {
			return err
		}
		if msgs[0].N == c.Poison {
			self, err := os.FindProcess(os.Getpid())
			if err != nil {
				return err
			}
			if err := self.Kill(); err != nil {
				return err
			}
			select {} // it takes effect somewhat later
		}
		if err := r.ack(ctx, b, c.Name, msgs); err != nil {
			return err
		}
	}
}

// A child is a consumer in a process of its own.
type child struct {
	cmd    *osexec.Cmd
	output bytes.Buffer
	ended  chan struct{}
}

func startChild(t *testing.T, config childConfig) *child {
	t.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: osexec.Command(os.Args[0], "-test.run=^TestCrashChild$"), ended: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	if _, err := c.cmd.StdinPipe(); err != nil { // held until one of the two ends
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait() // the state says it, too
		close(c.ended)
	}()
	t.Cleanup(func() { c.kill() })
	return c
}

// kill ends it with SIGKILL. It returns an error if it had ended before, which it does only for one.
func (c *child) kill() error {
	err := c.cmd.Process.Kill()
	<-c.ended
	return err
}

// killed waits until it has ended, and reports whether something killed it.
func (c *child) killed() (bool, error) {
	<-c.ended
	state := c.cmd.ProcessState
	if state.Exited() && !state.Success() {
		return false, fmt.Errorf("%v: %s", state, &c.output)
	}
	return !state.Exited(), nil
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

func readLedger(path string) (entries []entry, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) == nil { // empty, or its writer was killed, else
			entries = append(entries, e)
		}
	}
	return entries, lines.Err()
}

// waitForBackends waits until the server has seen that clients of these names are gone: what they asked for may go on
// till then.
func waitForBackends(t *testing.T, db *storetest.DB, names []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n := 1; n > 0; {
		err := db.Pool.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY ($1)`, names).Scan(&n)
		if err != nil {
			t.Fatalf("%d connections of killed consumers: %v", n, err)
		}
	}
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
	createForCrash(t, b)
	path := newLedgerFile(t)
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}

	var names []string
	start := func() *child {
		name := fmt.Sprintf("%s_%d", db.Schema, len(names))
		names = append(names, name)
		return startChild(t, childConfig{URL: db.URL, Schema: db.Schema, Ledger: path, Name: name, Seed: rng.Uint64()})
	}
	var children [consumers]*child
	for i := range children {
		children[i] = start()
	}
	// The ledger's growth is what decides about all the rest: when to publish, to move the clock and to kill.
	const moveEach = 500 // bytes
	var published memory
	nextKill, moved, n := int64(4_000), int64(0), 1
	for end := time.Now().Add(patience); len(names) < consumers+kills; {
		if time.Now().After(end) {
			t.Fatalf("%d consumers killed and %d bytes written after %v", len(names)-consumers, size(), patience)
		}
		if int64(n) < 50+size()/150 {
			k := 1 + rng.IntN(5)
			if err := recorder(published.add).publish(t.Context(), b, "publisher", n, k); err != nil {
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
		if err := children[i].kill(); err != nil {
			_, err := children[i].killed()
			t.Fatalf("a consumer ended by itself: %v", err)
		}
		children[i] = start()
		nextKill = size() + 4_000 + rng.Int64N(10_000)
	}
	for _, c := range children {
		if err := c.kill(); err != nil {
			_, err := c.killed()
			t.Fatalf("a consumer ended by itself: %v", err)
		}
	}
	waitForBackends(t, db, names)
	entries, err := readLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuditor(crashAttempts)
	if err := a.audit(t, b, clock, append(published.entries, entries...)); err != nil {
		t.Fatal(err)
	}
	if err := a.err(); err != nil {
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
	createForCrash(t, b)
	path := newLedgerFile(t)
	var published memory
	if err := recorder(published.add).publish(t.Context(), b, "publisher", 1, 10); err != nil {
		t.Fatal(err)
	}
	var names []string
	deaths := 0
	for range crashAttempts + 1 {
		name := fmt.Sprintf("%s_%d", db.Schema, len(names))
		names = append(names, name)
		killed, err := startChild(t, childConfig{URL: db.URL, Schema: db.Schema, Ledger: path, Name: name, Poison: poison}).killed()
		if err != nil {
			t.Fatal(err)
		}
		if killed {
			deaths++
		}
		if err := clock.Move(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if deaths != crashAttempts {
		t.Errorf("%d consumers died, want %d", deaths, crashAttempts)
	}
	waitForBackends(t, db, names)
	wantMetrics(t, b, "s", fastpubsub.Metrics{Acked: 9, DeadLetters: 1})
	letters, err := b.DeadLetters(t.Context(), "s", fastpubsub.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(letters) != 1 || string(letters[0].Payload) != string(numbered(poison, 1)[0].Payload) ||
		letters[0].DeliveryAttempts != crashAttempts || letters[0].LastError != "ack deadline passed" {
		t.Errorf("dead letters: %+v", letters)
	}
	entries, err := readLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuditor(crashAttempts)
	if err := a.audit(t, b, clock, append(published.entries, entries...)); err != nil {
		t.Fatal(err)
	}
	if err := a.err(); err != nil {
		t.Error(err)
	}
}

// upTo returns a duration shorter than d.
func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
