package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// pythonTables are the tables of the Python server, as far as its data are in them.
const pythonTables = `
CREATE SCHEMA {python};
CREATE TABLE {python}.topics (id text PRIMARY KEY, created_at timestamptz NOT NULL);
CREATE TABLE {python}.subscriptions (
    id text PRIMARY KEY, topic_id text NOT NULL REFERENCES {python}.topics ON DELETE CASCADE, filter jsonb,
    max_delivery_attempts int NOT NULL, backoff_min_seconds int NOT NULL, backoff_max_seconds int NOT NULL, created_at timestamptz NOT NULL);
CREATE TABLE {python}.subscription_messages (
    id uuid PRIMARY KEY, subscription_id text NOT NULL REFERENCES {python}.subscriptions ON DELETE CASCADE, payload jsonb NOT NULL,
    status text NOT NULL, delivery_attempts int NOT NULL, available_at timestamptz NOT NULL, locked_at timestamptz, locked_by text,
    created_at timestamptz NOT NULL, acked_at timestamptz);
CREATE TABLE {python}.clients (
    id uuid PRIMARY KEY, name text NOT NULL, scopes text NOT NULL, is_active boolean NOT NULL, secret_hash text NOT NULL,
    token_version int NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL);

INSERT INTO {python}.topics VALUES ('orders', '2025-01-02 03:04:05Z'), ('..', '2025-01-02Z');
INSERT INTO {python}.subscriptions VALUES
    ('emails', 'orders', NULL, 3, 7, 70, '2025-01-03 00:00Z'),
    ('south', 'orders', '{"country": ["BR", 1]}', 1, 5, 300, '2025-01-04 00:00Z'),
    ('odd', 'orders', '{"country": []}', 5, 5, 300, '2025-01-05 00:00Z'),
    ('lost', '..', NULL, 5, 5, 300, '2025-01-05 00:00Z'),
    ('steep', 'orders', 'null', 5, 9, 2, '2025-01-05 00:00Z');
INSERT INTO {python}.clients VALUES
    ('550e8400-e29b-41d4-a716-446655440000', 'My Application', 'topics:create  topics:read', true, '$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA', 4,
     '2025-01-03 00:00Z', '2025-01-04 00:00Z'),
    ('550e8400-e29b-41d4-a716-446655440001', 'Old', '*', false, 'md5$x', 1, '2025-01-03 00:00Z', '2025-01-04 00:00Z'),
    ('550e8400-e29b-41d4-a716-446655440002', 'Old', 'topics:create:x', true, '$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA', 1,
     '2025-01-03 00:00Z', '2025-01-04 00:00Z');
INSERT INTO {python}.subscription_messages
SELECT md5('emails' || i)::uuid, 'emails', jsonb_build_object('n', i), 'available', i % 2, '2025-02-01 00:00Z'::timestamptz + i * interval '1 s', NULL, NULL,
       '2025-02-01 00:00Z'::timestamptz + i * interval '1 s', NULL
FROM generate_series(1, 2500) i;
INSERT INTO {python}.subscription_messages VALUES
    ('00000000-0000-4000-8000-000000000001', 'south', '{"state": "leased"}', 'delivered', 1, '2025-02-01Z', now() - interval '5 s', 'w1', '2025-02-01Z', NULL),
    ('00000000-0000-4000-8000-000000000002', 'south', '{"state": "dead", "big": 12345678901234567890.10}', 'dlq', 2, '2025-02-02Z', NULL, NULL, '2025-02-01Z', NULL),
    ('00000000-0000-4000-8000-000000000003', 'south', '{"state": "often"}', 'available', 9, '2025-02-01Z', NULL, NULL, '2025-02-01Z', NULL),
    ('00000000-0000-4000-8000-000000000004', 'south', '{"state": "later"}', 'available', 0, now() + interval '1 h', NULL, NULL, '2025-02-01Z', NULL),
    ('00000000-0000-4000-8000-000000000005', 'south', '{"state": "done"}', 'acked', 1, '2025-02-01Z', NULL, NULL, '2025-02-01Z', '2025-02-01Z'),
    ('00000000-0000-4000-8000-000000000006', 'south', '[1]', 'available', 1, '2025-02-01Z', NULL, NULL, '2025-02-01Z', NULL),
    ('00000000-0000-4000-8000-000000000007', 'odd', '{}', 'available', 1, '2025-02-01Z', NULL, NULL, '2025-02-01Z', NULL),
    ('00000000-0000-4000-8000-000000000008', 'odd', '{}', 'dlq', 1, '2025-02-01Z', NULL, NULL, '2025-02-01Z', NULL);
`

// python makes the tables of a Python server in another schema of the same database.
func python(t *testing.T, db *storetest.DB) (schema string) {
	t.Helper()
	schema = "Py " + db.Schema[:min(len(db.Schema), 50)] // it may be any name
	quoted := pgx.Identifier{schema}.Sanitize()
	t.Cleanup(func() {
		if _, err := db.Pool.Exec(context.Background(), "DROP SCHEMA IF EXISTS "+quoted+" CASCADE"); err != nil {
			t.Error(err)
		}
	})
	if _, err := db.Pool.Exec(t.Context(), strings.ReplaceAll(pythonTables, "{python}", quoted), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	return schema
}

func importFlags(db *storetest.DB, schema string) []string {
	return []string{"import", "--database-url=" + db.URL, "--database-schema=" + db.Schema, "--from-schema=" + schema, "--log-formatter=text"}
}

func TestImport(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	args := importFlags(db, python(t, db))
	broker, err := fastpubsub.New(db.Pool, fastpubsub.Config{Schema: db.Schema})
	if err != nil {
		t.Fatal(err)
	}
	const refusals = `level=ERROR msg=refused topic=.. reason="id: must be neither \".\" nor \"..\""
level=ERROR msg=refused subscription=lost reason="its topic \"..\" was refused"
level=ERROR msg=refused subscription=odd reason="filter.country: must have at least 1 value"
level=WARN msg="backoff_min_seconds is above backoff_max_seconds, both become the latter" subscription=steep backoff_min_seconds=9 backoff_max_seconds=2
level=ERROR msg=refused client=550e8400-e29b-41d4-a716-446655440001 reason="secret_hash: must be a hash of argon2id like $argon2id$v=19$m=65536,t=3,p=4$SALT$HASH, with m up to 131072, t up to 10, p up to 16, a salt of 8 to 64 bytes and a hash of 16 to 64"
level=ERROR msg=refused client=550e8400-e29b-41d4-a716-446655440002 reason="scopes: \"topics:create:x\": there is no scope to create one object, which has no id before"
level=ERROR msg=refused message=00000000-0000-4000-8000-000000000006 reason="its payload: not an object at offset 0"
level=ERROR msg="refused with their subscription" subscription=odd messages=2
`
	// The first run is dry; the one after it is the first that writes.
	for i, want := range []string{
		"topics=2 new=1\nsubscriptions=5 new=3\nclients=3 new=1\nmessages=2505 new=2503\ndead_letters=2 new=1\nrefused=8\n",
		"topics=2 new=1\nsubscriptions=5 new=3\nclients=3 new=1\nmessages=2505 new=2503\ndead_letters=2 new=1\nrefused=8\n",
		"topics=2 new=0\nsubscriptions=5 new=0\nclients=3 new=0\nmessages=2505 new=0\ndead_letters=2 new=0\nrefused=8\n",
		"topics=2 new=0\nsubscriptions=5 new=0\nclients=3 new=0\nmessages=2505 new=0\ndead_letters=2 new=0\nrefused=8\n",
	} {
		run := args
		if i == 0 || i == 3 {
			run = append(args[:len(args):len(args)], "--dry-run")
		}
		code, stdout, stderr := execute(t.Context(), run...)
		if code != 1 {
			t.Errorf("run %d: exit code %d", i, code)
		}
		if diff := cmp.Diff(want, stdout); diff != "" {
			t.Errorf("run %d (-want +got):\n%s", i, diff)
		}
		var log strings.Builder
		for line := range strings.Lines(stderr) {
			_, rest, _ := strings.Cut(line, " ") // the time
			log.WriteString(rest)
		}
		if diff := cmp.Diff(refusals, log.String()); diff != "" {
			t.Errorf("run %d: stderr (-want +got):\n%s", i, diff)
		}
		if i == 0 {
			if topics, err := broker.ListTopics(t.Context(), fastpubsub.ListOptions{}); err != nil || len(topics) > 0 {
				t.Errorf("a dry run made %v, %v", topics, err)
			}
		}
	}

	topic, err := broker.GetTopic(t.Context(), "orders")
	if want := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC); err != nil || !topic.CreatedAt.Equal(want) {
		t.Errorf("topic %v, %v", topic, err)
	}
	for id, want := range map[string]string{
		"emails": "null 3 7s 1m10s 1m0s 2025-01-03 00:00:00 +0000 UTC",
		"south":  `{"country":["BR",1]} 1 5s 5m0s 1m0s 2025-01-04 00:00:00 +0000 UTC`,
		"steep":  "null 5 2s 2s 1m0s 2025-01-05 00:00:00 +0000 UTC",
	} {
		s, err := broker.GetSubscription(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintln(s.Filter, s.MaxDeliveryAttempts, s.BackoffMin, s.BackoffMax, s.AckDeadline, s.CreatedAt); got != want+"\n" {
			t.Errorf("%s is %s, want %s", id, got, want)
		}
	}
	var client string
	err = db.Pool.QueryRow(t.Context(), db.SQL(`
SELECT concat_ws('|', name, scopes, is_active, secret_hash, token_version, created_at AT TIME ZONE 'UTC', updated_at AT TIME ZONE 'UTC')
FROM {schema}.clients`)).Scan(&client)
	const wantClient = "My Application|topics:create topics:read|t|$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA|4|2025-01-03 00:00:00|2025-01-04 00:00:00"
	if err != nil || client != wantClient {
		t.Errorf("client %s, %v", client, err)
	}

	m, err := broker.Metrics(t.Context(), "south")
	if err != nil || m.Available != 2 || m.Delayed != 1 || m.Delivered != 1 || m.DeadLetters != 1 || m.Acked != 0 {
		t.Errorf("metrics %+v, %v", m, err)
	}
	letters, err := broker.DeadLetters(t.Context(), "south", fastpubsub.ListOptions{})
	if err != nil || len(letters) != 1 || string(letters[0].Payload) != `{"big": 12345678901234567890.10, "state": "dead"}` ||
		!letters[0].DeadAt.Equal(time.Date(2025, 2, 2, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("dead letters %v, %v", letters, err)
	}
	// What was with a consumer for the last time it may be dies when its ack deadline is over.
	clock := db.StopClock(t)
	if err := clock.Move(t.Context(), 59*time.Second); err != nil {
		t.Fatal(err)
	}
	if stuck, err := broker.CleanupStuck(t.Context()); err != nil || stuck.DeadLetters != 1 || stuck.Released != 0 {
		t.Errorf("cleanup: %+v, %v", stuck, err)
	}

	// All of them come once, in their order, with their attempts; a redelivery has the same id, and acks count.
	for got := 0; got < 2500; {
		msgs, err := broker.Consume(t.Context(), "emails", fastpubsub.ConsumeOptions{Consumer: "w", Max: 1000})
		if err != nil {
			t.Fatal(err)
		}
		ids := make([]fastpubsub.ID, len(msgs))
		for i, msg := range msgs {
			got++
			ids[i] = msg.ID
			if want := fmt.Sprintf(`{"n": %d}`, got); string(msg.Payload) != want || msg.DeliveryAttempts != got%2+1 {
				t.Fatalf("message %d is %s, attempt %d", got, msg.Payload, msg.DeliveryAttempts)
			}
			if !msg.CreatedAt.Equal(time.Date(2025, 2, 1, 0, 0, got, 0, time.UTC)) {
				t.Fatalf("message %d is of %v", got, msg.CreatedAt)
			}
		}
		if n, err := broker.Ack(t.Context(), "emails", ids); err != nil || n != len(ids) {
			t.Fatalf("acked %d of %d, %v", n, len(ids), err)
		}
		if len(msgs) == 0 {
			t.Fatalf("%d messages came", got)
		}
	}
	// Acked and gone, they still do not come again, but a subscription that was deleted comes back with all that it had.
	for range 2 {
		if _, err := broker.CleanupStuck(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := broker.DeleteSubscription(t.Context(), "south"); err != nil {
			t.Fatal(err)
		}
		const want = "topics=2 new=0\nsubscriptions=5 new=1\nclients=3 new=0\nmessages=2505 new=3\ndead_letters=2 new=1\nrefused=8\n"
		if _, stdout, _ := execute(t.Context(), args...); stdout != want {
			t.Errorf("stdout %s, want %s", stdout, want)
		}
	}
}

// An import that is cut off anywhere goes on with the next, and two at once share the work.
func TestImportCutOff(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	args := importFlags(db, python(t, db))
	// It breaks in the third batch.
	_, err := db.Pool.Exec(t.Context(), db.SQL(`
CREATE FUNCTION {schema}.break() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.payload = '{"n": 2400}' THEN RAISE 'cut off'; END IF;
    RETURN new;
END $$;
CREATE TRIGGER break BEFORE INSERT ON {schema}.deliveries FOR EACH ROW EXECUTE FUNCTION {schema}.break()`), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := execute(t.Context(), args...)
	if code != 1 || !strings.Contains(stderr, "cut off") || !strings.Contains(stdout, "new=1999\n") { // one of the first 2,000 is a dead letter
		t.Errorf("exit code %d, stdout %s, stderr %s", code, stdout, stderr)
	}
	if _, err := db.Pool.Exec(t.Context(), db.SQL(`DROP TRIGGER break ON {schema}.deliveries`)); err != nil {
		t.Fatal(err)
	}
	counts := make(chan int, 2)
	for range 2 {
		go func() {
			_, stdout, stderr := execute(t.Context(), args...)
			var found, n int
			_, line, _ := strings.Cut(stdout, "\nmessages=")
			if _, err := fmt.Sscanf(line, "%d new=%d", &found, &n); err != nil {
				t.Errorf("stdout %s, stderr %s", stdout, stderr)
			}
			counts <- n
		}()
	}
	if n := <-counts + <-counts; n != 504 {
		t.Errorf("%d messages came after the first 1,999", n)
	}
}

func TestImportErrors(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	args := importFlags(db, "nowhere")
	for _, test := range []struct {
		reason string
		args   []string
		code   int
		stderr string
	}{
		{"no such schema", args, 1, `there are no tables of the Python server in schema \"nowhere\" of the database named`},
		{"our own schema", append(args[:len(args):len(args)], "--from-schema="+db.Schema), 1, "there are no tables of the Python server"},
		{"source away", append(args[:len(args):len(args)], "--from="+nowhere), 1, "the database of the Python server"},
		{"source of another kind", append(args[:len(args):len(args)], "--from=mysql://u:secret@h/d"), 2, "FASTPUBSUB_IMPORT_FROM: must be a URL"},
		{"not migrated", append(args[:len(args):len(args)], "--database-schema=nowhere"), 1, "run db-migrate"},
		{"no database", []string{"import"}, 2, "FASTPUBSUB_DATABASE_URL: must be set"},
	} {
		code, stdout, stderr := execute(t.Context(), test.args...)
		if code != test.code || stdout != "" || !strings.Contains(stderr, test.stderr) || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "secret") {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", test.reason, code, stdout, stderr)
		}
	}
}

// A Python server that still runs is noticed.
func TestImportWhileRunning(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	schema := python(t, db)
	_, err := db.Pool.Exec(t.Context(), "UPDATE "+pgx.Identifier{schema, "subscription_messages"}.Sanitize()+
		" SET locked_at = now() + interval '1 h' WHERE status = 'delivered'")
	if err != nil {
		t.Fatal(err)
	}
	code, _, stderr := execute(t.Context(), importFlags(db, schema)...)
	if code != 1 || !strings.Contains(stderr, "1 messages were written there meanwhile: stop the Python server and import again") {
		t.Errorf("exit code %d, stderr %s", code, stderr)
	}
}
