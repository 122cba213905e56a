package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// PostgreSQL is killed under a tail and comes back. The tail goes on where it was: what was published before, while others were
// already back, and after is printed once.
func TestTailGoesOnAfterRestart(t *testing.T) {
	t.Parallel()
	database, db := storetest.NewServer(t, nil)
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broker.CreateTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"looked-at", "consumed"} {
		if _, err := broker.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: id, TopicID: "t"}); err != nil {
			t.Fatal(err)
		}
	}
	flags := []string{"--database-url=" + db.URL, "--database-schema=" + db.Schema}
	tails := map[string]*tailing{
		"look": startTail(t, append([]string{"looked-at"}, flags...)...),
		"ack":  startTail(t, append([]string{"consumed", "--ack"}, flags...)...),
	}
	tails["look"].waitFor(t, &tails["look"].err, "following")
	publish := func(n int) {
		t.Helper()
		if _, err := broker.Publish(t.Context(), "t", fastpubsub.JSON(map[string]int{"n": n})); err != nil {
			t.Fatal(err)
		}
	}
	publish(0)
	for n := 1; n <= 2; n++ {
		for _, tail := range tails {
			tail.waitFor(t, &tail.out, fmt.Sprintf(`{"n":%d}`, n-1))
		}
		// The ack of what was printed is on its way: it must not be what is lost here.
		eventually(t, fmt.Sprint(n), func() string {
			m, err := broker.Metrics(t.Context(), "consumed")
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(m.Acked)
		})
		interruptions := func(name string) int { return strings.Count(tails[name].err.String(), "interrupted, trying again") }
		before := map[string]int{"look": interruptions("look"), "ack": interruptions("ack")}
		if err := database.Kill(); err != nil {
			t.Fatal(err)
		}
		for name := range tails {
			eventually(t, "true", func() string { return fmt.Sprint(interruptions(name) > before[name]) })
		}
		if err := database.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		db.Pool.Reset() // its connections are dead
		publish(n)
	}
	for name, tail := range tails {
		tail.waitFor(t, &tail.out, `{"n":2}`)
		tail.cancel()
		if code := <-tail.ended; code != 0 {
			t.Errorf("%s: exit code %d after an interrupt: %s", name, code, &tail.err)
		}
		for n := range 3 {
			if got := strings.Count(tail.out.String(), fmt.Sprintf(`{"n":%d}`, n)); got != 1 {
				t.Errorf("%s: message %d was printed %d times: %s", name, n, got, &tail.out)
			}
		}
	}
}

// A cutter is the output of a tail, and calls cut before the first line.
type cutter struct {
	syncBuffer
	cut func()
}

func (c *cutter) Write(line []byte) (int, error) {
	if c.String() == "" {
		c.cut()
	}
	return c.syncBuffer.Write(line)
}

// PostgreSQL is killed between the printing of messages and their ack. The ack is made up for, and the count holds.
func TestTailAckAfterRestart(t *testing.T) {
	t.Parallel()
	database, db := storetest.NewServer(t, nil)
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broker.CreateTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: "s", TopicID: "t"}); err != nil {
		t.Fatal(err)
	}
	publish := func() {
		t.Helper()
		if _, err := broker.Publish(t.Context(), "t", fastpubsub.NewMessage{Payload: []byte("{}")}); err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		publish()
	}
	out := &cutter{cut: func() {
		publish() // its commit is durable, and what was taken before it is, too: else the ack would find nothing
		if err := database.Kill(); err != nil {
			t.Error(err)
		}
	}}
	tail := &tailing{ended: make(chan int, 1)}
	args := []string{"tail", "s", "--ack", "--count=2", "--database-url=" + db.URL, "--database-schema=" + db.Schema}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { tail.ended <- run(&process{ctx, strings.NewReader(""), out, &tail.err}, args) }()
	tail.waitFor(t, &tail.err, "interrupted, trying again")
	if err := database.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset() // its connections are dead
	code := -1
	select {
	case code = <-tail.ended:
	case <-time.After(testPatience):
		t.Error("it does not end")
	}
	if got := strings.Count(out.String(), "\n"); code != 0 || got != 2 {
		t.Errorf("exit code %d, %d lines, want 2: %s%s", code, got, out, &tail.err)
	}
	m, err := broker.Metrics(t.Context(), "s")
	if err != nil || m.Acked != 2 || m.Available != 2 || m.Delivered != 0 {
		t.Errorf("%+v, %v, want 2 acked and 2 available", m, err)
	}
}
