package doctor_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/doctor"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A slot that is not the current one any more says what keeps it.
func TestSlots(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	broker := subscribed(t, db)
	clock := db.StopClock(t)
	publish(t, broker, 4)
	execSQL(t, db, "SELECT setval('{schema}.message_slot', 5, true)") // slot 1
	publish(t, broker, 2)
	report := examine(t, db)
	want(t, report, "message_slots", doctor.OK, "start their consumers", "slot 0 of the log: ", "it cannot be truncated: unread by subscription s")
	want(t, report, "message_slots", doctor.OK, "", "slot 1 (current) of the log: ", "oldest message ")
	want(t, report, "message_slots", doctor.OK, "", "empty: 2, 3")

	move(t, clock, 50*time.Hour)
	f := want(t, examine(t, db), "message_slots", doctor.Warning, "start their consumers", "slot 0 of the log: ", "oldest message 2 days", "newest 2 days", "unread by subscription s")
	if f.Facts["slot"] != 0 || f.Facts["current"] != false || f.Facts["bytes"].(int64) <= 0 {
		t.Errorf("facts %v", f.Facts)
	}
	want(t, examine(t, db, limits(doctor.Limits{SlotBytes: 1})), "message_slots", doctor.Notice, "fastpubsub cleanup_acked_messages", "slot 1 (current) of the log: ")

	// Taken, but not acked; the cursor is behind the slot, its leases lead into it.
	msgs := consume(t, broker, 6)
	want(t, examine(t, db), "message_slots", doctor.Warning, "wait for their acks", "slot 0 of the log: ", "it cannot be truncated: leased by subscription s")
	execSQL(t, db, "SELECT setval('{schema}.lease_slot', 2, true)")
	want(t, examine(t, db), "lease_slots", doctor.OK, "wait for their acks", "slot 0 of leases and cursors: ",
		"leases that are open or not yet counted, of subscription s; the state of subscription s")

	// A snapshot that began before the slot's last message has its part in it.
	ack(t, broker, msgs)
	f, _ = find(examine(t, db), "message_slots", "slot 0 of the log: ")
	if strings.Contains(f.Summary, "leased by") || strings.Contains(f.Summary, "unread by") {
		t.Errorf("acked, but: %s", f.Summary)
	}

	// Nothing is left but the subscription's state, which moves with the next change.
	move(t, clock, time.Hour)
	if _, err := broker.CleanupStuck(t.Context()); err != nil {
		t.Fatal(err)
	}
	report = examine(t, db)
	want(t, report, "lease_slots", doctor.OK, "maintenance truncates it", "slot 0 of leases and cursors: ", "nothing keeps it from being truncated")
	want(t, report, "lease_slots", doctor.OK, "", "slot 2 (current) of leases and cursors: ")

	// As leases are that were moved out.
	execSQL(t, db, "UPDATE {schema}.leases SET deadline = '-infinity'")
	want(t, examine(t, db), "lease_slots", doctor.OK, "maintenance truncates it", "slot 0 of leases and cursors: ", "nothing keeps it from being truncated")
}

// A snapshot that is older than a slot's last message still has to find it there.
func TestSlotSnapshot(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, nil)
	broker := subscribed(t, db)
	tx := begin(t, db, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
	publish(t, broker, 1)
	ack(t, broker, consume(t, broker, 1))
	execSQL(t, db, "SELECT nextval('{schema}.message_slot'), nextval('{schema}.message_slot')")
	want(t, examine(t, db), "message_slots", doctor.OK, "see horizon", "slot 0 of the log: ", "it cannot be truncated: seen by the older snapshot of pid ")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, examine(t, db), "message_slots", doctor.OK, "maintenance truncates it", "slot 0 of the log: ", "nothing keeps it from being truncated")

	// One that maintenance waits for need not have a snapshot.
	tx = begin(t, db, "SELECT 1")
	freed, err := broker.CleanupAcked(t.Context(), time.Nanosecond)
	if err != nil || freed.Waiting == 0 {
		t.Fatalf("nothing waits: %+v, %v", freed, err)
	}
	f := want(t, examine(t, db), "message_slots", doctor.OK, "end those transactions", "slot 0 of the log: ", "nothing in it is needed, but it may still be read by pid ")
	if pids := f.Facts["waits_for"].([]string); len(pids) != 1 {
		t.Errorf("waits for %v", pids)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	report := examine(t, db, limits(doctor.Limits{SlotAge: time.Nanosecond}))
	want(t, report, "message_slots", doctor.Warning, "maintenance truncates it", "slot 0 of the log: ", "nothing keeps it from being truncated")
}

// A transaction that was passed, and then committed into an old slot, is unread.
func TestSlotLate(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	broker := subscribed(t, db)
	tx := begin(t, db, "SELECT pg_current_xact_id()")
	publish(t, broker, 1)
	ack(t, broker, consume(t, broker, 1))
	if _, err := tx.Exec(t.Context(), db.SQL(`SELECT {schema}.publish('t', ARRAY['{}'], NULL)`)); err != nil {
		t.Fatal(err)
	}
	execSQL(t, db, "SELECT setval('{schema}.message_slot', 1, true)")
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, examine(t, db), "message_slots", doctor.OK, "start their consumers", "slot 0 of the log: ", "unread by subscription s")
}

func TestOptions(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	want(t, examine(t, db), "options", doctor.OK, "", "13 tables have the options that they were made with")
	execSQL(t, db, "ALTER TABLE {schema}.leases_2 RESET (fillfactor, autovacuum_enabled, toast.autovacuum_enabled)")
	execSQL(t, db, "ALTER TABLE {schema}.deliveries RESET (autovacuum_vacuum_scale_factor)")
	report := examine(t, db)
	f := want(t, report, "options", doctor.Notice,
		db.SQL("ALTER TABLE {schema}.leases_2 SET (autovacuum_enabled = off, toast.autovacuum_enabled = off, fillfactor = 50);"), "the table leases_2 lacks options")
	execSQL(t, db, f.Remedy)
	f = want(t, report, "options", doctor.Notice, db.SQL("ALTER TABLE {schema}.deliveries SET (autovacuum_vacuum_scale_factor = 0.02);"), "the table deliveries lacks")
	execSQL(t, db, f.Remedy)
	want(t, examine(t, db), "options", doctor.OK, "", "13 tables")
}

func TestCompression(t *testing.T) {
	t.Parallel()
	db := storetest.New(t)
	var lz4 bool
	if err := db.Pool.QueryRow(t.Context(), `SELECT 'lz4' = ANY (enumvals) FROM pg_catalog.pg_settings WHERE name = 'default_toast_compression'`,
		pgx.QueryExecModeSimpleProtocol).Scan(&lz4); err != nil {
		t.Fatal(err)
	}
	if !lz4 {
		want(t, examine(t, db), "compression", doctor.Notice, "use a server that is built with lz4", "built without lz4")
		return
	}
	want(t, examine(t, db), "compression", doctor.OK, "", "compressed with lz4")
	execSQL(t, db, "ALTER TABLE {schema}.messages_1 ALTER payloads SET COMPRESSION pglz")
	f := want(t, examine(t, db), "compression", doctor.Notice, db.SQL("ALTER TABLE {schema}.messages_1 ALTER payloads SET COMPRESSION lz4;"), "slots of the log (messages_1) are without lz4")
	execSQL(t, db, f.Remedy)
	want(t, examine(t, db), "compression", doctor.OK, "", "compressed with lz4")
}
