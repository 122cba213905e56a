package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// failing returns the flags of a schema with a subscription s that delivers a message once, and its broker.
func failing(t *testing.T) (*fastpubsub.Broker, *storetest.DB, []string) {
	t.Helper()
	broker, db := subscribed(t, fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: 1})
	return broker, db, []string{"--database-url=" + db.URL, "--database-schema=" + db.Schema}
}

func publishAndConsume(t *testing.T, broker *fastpubsub.Broker, n int) []fastpubsub.Message {
	t.Helper()
	msgs := make([]fastpubsub.NewMessage, n)
	for i := range msgs {
		msgs[i].Payload = fmt.Appendf(nil, `{"n" : %d}`, i)
	}
	if _, err := broker.Publish(t.Context(), "t", msgs...); err != nil {
		t.Fatal(err)
	}
	got, err := broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test", Max: n})
	if err != nil || len(got) != n {
		t.Fatalf("%d messages of %d, %v", len(got), n, err)
	}
	return got
}

// kill makes n messages dead letters.
func kill(t *testing.T, broker *fastpubsub.Broker, n int) []fastpubsub.Message {
	t.Helper()
	msgs := publishAndConsume(t, broker, n)
	deliveries := make([]fastpubsub.Delivery, n)
	for i, msg := range msgs {
		deliveries[i] = msg.Delivery
	}
	if killed, err := broker.Nack(t.Context(), "s", deliveries, fastpubsub.NackOptions{Error: "no luck"}); err != nil || killed != n {
		t.Fatalf("nacked %d, %v", killed, err)
	}
	return msgs
}

func TestCleanupStuck(t *testing.T) {
	t.Parallel()
	broker, db, flags := failing(t)
	clock := db.StopClock(t)
	publishAndConsume(t, broker, 3)
	for _, test := range []struct{ command, counts string }{
		{"cleanup_stuck_messages", "released=0 dead_letters=0 busy_subscriptions=0"},
		{"cleanup-stuck-messages", "released=0 dead_letters=3 busy_subscriptions=0"},
	} {
		code, stdout, stderr := execute(t.Context(), append([]string{test.command}, flags...)...)
		if code != 0 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, test.counts) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", test.command, code, stdout, stderr)
		}
		if err := clock.Move(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{"cleanup_stuck_messages", "dlq list s", "dlq purge s --all"} {
		code, stdout, stderr := execute(t.Context(), append(strings.Fields(command), flags[0], "--database-schema=nowhere")...)
		if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "run db-migrate") {
			t.Errorf("%s without a schema: exit code %d, stdout %q, stderr %q", command, code, stdout, stderr)
		}
	}
}

// The server does maintenance at its start, and then all the time, unless a setting says otherwise.
func TestServerMaintenance(t *testing.T) {
	t.Parallel()
	broker, db, _ := failing(t)
	clock := db.StopClock(t)
	publishAndConsume(t, broker, 3)
	if err := clock.Move(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	dead := func() int64 {
		m, err := broker.Metrics(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		return m.DeadLetters
	}
	for _, enabled := range []bool{false, true} {
		var log syncBuffer
		url, stop := startWith(t, db.Pool, apiSettings{schema: db.Schema, maintenance: enabled}, &log)
		if _, err := get(t.Context(), url+"/readiness"); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); enabled && dead() == 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond) // between polls
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if n := dead(); (n == 3) != enabled {
			t.Errorf("enabled %t: %d dead letters; log: %s", enabled, n, log.String())
		}
	}
}

func TestCleanupAcked(t *testing.T) {
	t.Parallel()
	broker, db, flags := failing(t)
	clock := db.StopClock(t)
	msgs := publishAndConsume(t, broker, 3)
	ids := make([]fastpubsub.ID, len(msgs))
	for i, msg := range msgs {
		ids[i] = msg.ID
	}
	if n, err := broker.Ack(t.Context(), "s", ids); err != nil || n != len(ids) {
		t.Fatalf("acked %d: %v", n, err)
	}
	run := func(command, counts string) {
		t.Helper()
		code, stdout, stderr := execute(t.Context(), append([]string{command}, flags...)...)
		if code != 0 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, counts) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", command, code, stdout, stderr)
		}
	}
	run("cleanup_acked_messages", "freed_bytes=0 slots_emptied=0 spilled_messages=0 slots_needed=0 slots_waiting=0") // too young
	for range 3 {                                                                                                    // left, moved out of, and then perhaps waited for
		if err := clock.Move(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		run("cleanup-acked-messages", "freed_bytes=")
	}
	var left int64
	if err := db.Pool.QueryRow(t.Context(), db.SQL(`SELECT {schema}.slot_bytes('messages', 0::smallint)`)).Scan(&left); err != nil || left > 0 {
		t.Errorf("%d bytes are left: %v", left, err)
	}
	code, stdout, stderr := execute(t.Context(), append([]string{"cleanup_acked_messages", "--cleanup-acked-messages-older-than-seconds=-1"}, flags...)...)
	if code != 2 || stdout != "" || !strings.Contains(stderr, "FASTPUBSUB_CLEANUP_ACKED_MESSAGES_OLDER_THAN_SECONDS") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// A subscription that somebody holds is left for the next time. The variable that gives new subscriptions their ack deadline
// is not this command's.
func TestCleanupStuckBusy(t *testing.T) {
	broker, db, flags := failing(t)
	t.Setenv("FASTPUBSUB_CLEANUP_STUCK_MESSAGES_LOCK_TIMEOUT_SECONDS", "nonsense")
	clock := db.StopClock(t)
	publishAndConsume(t, broker, 1)
	if err := clock.Move(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	holder, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(context.WithoutCancel(t.Context()))
	const lock = `SELECT pg_advisory_xact_lock('{schema}.leases'::regclass::oid::bigint::bit(32)::int, num) FROM {schema}.subscriptions`
	if _, err := holder.Exec(t.Context(), db.SQL(lock)); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := execute(t.Context(), append([]string{"cleanup_stuck_messages"}, flags...)...)
	if code != 0 || stdout != "" || !strings.Contains(stderr, "level=WARNING") ||
		!strings.Contains(stderr, "released=0 dead_letters=0 busy_subscriptions=1") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestDLQ(t *testing.T) {
	t.Parallel()
	broker, _, flags := failing(t)
	dlq := func(code int, args ...string) string {
		t.Helper()
		got, stdout, stderr := execute(t.Context(), append(append([]string{"dlq"}, args...), flags...)...)
		if got != code || (stderr != "") != (code != 0) {
			t.Fatalf("dlq %v: exit code %d, want %d; %s", args, got, code, stderr)
		}
		return stdout + stderr
	}
	msgs := kill(t, broker, 3)
	lines := strings.Split(dlq(0, "list", "s", "--offset=1", "--limit=5"), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], `{"id":"`+msgs[1].ID.String()+`","subscription_id":"s","payload":{"n" : 1},"delivery_attempts":1,`) ||
		!strings.Contains(lines[0], `"last_error":"no luck","dead_at":"`) {
		t.Errorf("list printed %q", lines)
	}
	id := msgs[0].ID.String()
	for i, want := range []string{"count=1\n", "count=0\n"} {
		if got := dlq(0, "reprocess", "s", id); got != want {
			t.Errorf("reprocess %d printed %q", i, got)
		}
	}
	again, err := broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test"})
	if err != nil || len(again) != 1 || again[0].ID != msgs[0].ID {
		t.Errorf("after reprocess %v, %v comes", again, err)
	}
	if got := dlq(0, "purge", "s", msgs[1].ID.String(), id); got != "count=1\n" {
		t.Errorf("purge printed %q", got)
	}
	kill(t, broker, 1000)
	kill(t, broker, 100)
	if got := dlq(0, "reprocess", "s", "--all"); got != "count=1101\n" {
		t.Errorf("reprocess of all printed %q", got)
	}
	if got := dlq(0, "purge", "s", "--all"); got != "count=0\n" {
		t.Errorf("purge of none printed %q", got)
	}
	for _, args := range [][]string{{"list", "x"}, {"purge", "x", "--all"}, {"reprocess", "x", id}} {
		got := dlq(1, args...)
		if want := fmt.Sprintf(`fastpubsub: dlq %s: there is no subscription "x"`, args[0]); !strings.HasSuffix(got, want+"\n") || strings.Contains(got, "count=") {
			t.Errorf("dlq %v printed %q, want %s", args, got, want)
		}
	}
}

// A line is an object whatever the payload looks like, and has the payload as it was published but for its line breaks.
func TestDLQLines(t *testing.T) {
	t.Parallel()
	broker, _, flags := failing(t)
	published := fastpubsub.NewMessage{Payload: json.RawMessage("{\"a\" :\r\n1.50e+1,\n\t\"b\":\"\\n\u2028\"}"), Attributes: map[string]string{"k": "1\n2"}}
	if _, err := broker.Publish(t.Context(), "t", published); err != nil {
		t.Fatal(err)
	}
	msgs, err := broker.Consume(t.Context(), "s", fastpubsub.ConsumeOptions{Consumer: "test"})
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%v, %v", msgs, err)
	}
	_, err = broker.Nack(t.Context(), "s", []fastpubsub.Delivery{msgs[0].Delivery}, fastpubsub.NackOptions{Error: "one\ntwo"})
	if err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := execute(t.Context(), append([]string{"dlq", "list", "s"}, flags...)...)
	if code != 0 || stderr != "" || strings.Count(stdout, "\n") != 1 {
		t.Fatalf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	const want = "\"payload\":{\"a\" :  1.50e+1, \t\"b\":\"\\n\u2028\"},"
	if !strings.Contains(stdout, want) {
		t.Errorf("%s lacks %s", stdout, want)
	}
	var line struct {
		Attributes map[string]string `json:"attributes"`
		LastError  string            `json:"last_error"`
	}
	if err := json.Unmarshal([]byte(stdout), &line); err != nil || line.LastError != "one\ntwo" || line.Attributes["k"] != "1\n2" {
		t.Errorf("%s is %+v, %v", stdout, line, err)
	}
}

// Two that empty the same queue at once do not mind each other.
func TestDLQTogether(t *testing.T) {
	t.Parallel()
	broker, _, flags := failing(t)
	const n = 1000
	kill(t, broker, n)
	counts := make(chan int)
	for range 2 {
		go func() {
			code, stdout, stderr := execute(t.Context(), append([]string{"dlq", "purge", "s", "--all"}, flags...)...)
			count := 0
			if _, err := fmt.Sscanf(stdout, "count=%d\n", &count); err != nil || code != 0 {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			counts <- count
		}()
	}
	if got := <-counts + <-counts; got != n {
		t.Errorf("%d purged in all, want %d", got, n)
	}
}

// copied makes a schema look like a restored dump.
func copied(t *testing.T, db *storetest.DB) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), db.SQL(`UPDATE {schema}.origin SET messages = messages`)); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
}

func TestRepair(t *testing.T) {
	t.Parallel()
	broker, db, flags := failing(t)
	if _, err := broker.Publish(t.Context(), "t", fastpubsub.NewMessage{Payload: []byte(`{}`)}); err != nil {
		t.Fatal(err)
	}
	copied(t, db)
	for _, test := range []struct {
		command string
		code    int
		text    string
	}{
		{"cleanup_acked_messages", 1, "messages were copied here from another database: run fastpubsub repair"},
		{"doctor", 1, "-> fastpubsub repair --database-schema=" + db.Schema},
		{"repair", 0, "messages=1"},
		{"repair", 0, "nothing to repair"},
		{"cleanup_acked_messages", 0, "freed_bytes"},
		{"repair --database-schema=nowhere", 1, "run db-migrate"},
		{"repair --database-url=nonsense", 2, "FASTPUBSUB_DATABASE_URL: must be a URL"},
	} {
		code, stdout, stderr := execute(t.Context(), slices.Insert(strings.Fields(test.command), 1, flags...)...)
		if code != test.code || !strings.Contains(stdout+stderr, test.text) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q; want %d and %q", test.command, code, stdout, stderr, test.code, test.text)
		}
	}
}

// The server repairs what it finds at its start, also where it leaves maintenance to others.
func TestServerRepairs(t *testing.T) {
	t.Parallel()
	for _, maintenance := range []bool{false, true} {
		_, db, _ := failing(t)
		copied(t, db)
		var log syncBuffer
		url, stop := startWith(t, db.Pool, apiSettings{schema: db.Schema, maintenance: maintenance}, &log)
		ready := func() bool {
			answer, err := get(t.Context(), url+"/readiness")
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(answer, `"ready"`)
		}
		for end := time.Now().Add(time.Minute); !ready(); {
			if time.Now().After(end) {
				t.Fatalf("maintenance %t: not ready after a minute; log: %s", maintenance, log.String())
			}
			time.Sleep(time.Millisecond) // between polls
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}
