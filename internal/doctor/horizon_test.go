package doctor_test

import (
	"context"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/doctor"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// at makes everything that is open for long.
var at = limits(doctor.Limits{TransactionNotice: time.Nanosecond, TransactionWarning: time.Millisecond, SlotXids: 1 << 30})

// What pins the horizon is found, and what the remedy says ends it. The server is the test's own, so that nobody else's
// transactions are in the way.
func TestHorizon(t *testing.T) {
	t.Parallel()
	_, db := storetest.NewServer(t, map[string]string{"max_prepared_transactions": "5"})
	broker := subscribed(t, db)

	t.Run("Snapshot", func(t *testing.T) {
		tx := begin(t, db, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
		publish(t, broker, 1)
		time.Sleep(2 * time.Millisecond) // for the limit
		pid := tx.Conn().PgConn().PID()
		report := examine(t, db, at)
		f := want(t, report, "horizon", doctor.Warning, "end it where it was begun; or consider SELECT pg_terminate_backend(",
			fmt.Sprintf("pid %d (application %s, user fastpubsub, database fastpubsub, idle in transaction for ", pid, db.Schema),
			"holds the horizon ", "back")
		if f.Facts["pid"] != int(pid) || f.Facts["snapshot_age_transactions"].(int64) < 1 || f.Facts["open_seconds"].(float64) <= 0 {
			t.Errorf("facts %v", f.Facts)
		}
		want(t, report, "writers", doctor.OK, "", "0 transactions write")
		want(t, examine(t, db), "horizon", doctor.OK, "", "the oldest snapshot is ", fmt.Sprintf("pid %d ", pid))
		execSQL(t, db, regexp.MustCompile(`SELECT pg_terminate_backend\(\d+\)`).FindString(f.Remedy))
		waitFor(t, func() bool {
			_, ok := find(examine(t, db, at), "horizon", "no session holds the horizon back")
			return ok
		})
	})
	t.Run("Writer", func(t *testing.T) {
		tx := begin(t, db, "SELECT pg_current_xact_id()")
		time.Sleep(2 * time.Millisecond)
		report := examine(t, db, at)
		who := fmt.Sprintf("pid %d (", tx.Conn().PgConn().PID())
		want(t, report, "writers", doctor.Warning, "end it where it was begun", who, "that has written")
		want(t, report, "horizon", doctor.Warning, "end it where it was begun", who)
		want(t, examine(t, db), "writers", doctor.OK, "", "1 transaction writes")
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(t, examine(t, db, at), "writers", doctor.OK, "", "0 transactions write")
	})
	t.Run("Many", func(t *testing.T) {
		for range 8 {
			conn, err := pgx.Connect(t.Context(), db.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.WithoutCancel(t.Context()))
			if _, err := conn.Exec(t.Context(), "BEGIN; SELECT pg_current_xact_id()"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Millisecond)
		want(t, examine(t, db, at), "writers", doctor.Notice, "", "and 3 more such sessions")
	})
	t.Run("Prepared", func(t *testing.T) {
		begin(t, db, "SELECT pg_current_xact_id(); PREPARE TRANSACTION 'it''s one'")
		report := examine(t, db, at)
		want(t, report, "prepared", doctor.Warning, "in database fastpubsub: COMMIT PREPARED 'it''s one'; or ROLLBACK PREPARED 'it''s one';",
			"the prepared transaction 'it''s one' (owner fastpubsub, database fastpubsub)")
		want(t, examine(t, db), "prepared", doctor.OK, "", "1 prepared transaction, none for long")
		execSQL(t, db, "ROLLBACK PREPARED 'it''s one'")
		want(t, examine(t, db, at), "prepared", doctor.OK, "", "0 prepared transactions")
	})
	t.Run("ReplicationSlot", func(t *testing.T) {
		execSQL(t, db, "SELECT pg_create_physical_replication_slot('gone', true)")
		publish(t, broker, 10)
		f := want(t, examine(t, db), "replication", doctor.Warning, "bring its consumer back", "nobody uses the physical replication slot 'gone'", "of WAL")
		if f.Facts["wal_bytes"].(int64) <= 0 {
			t.Errorf("facts %v", f.Facts)
		}
		execSQL(t, db, regexp.MustCompile(`SELECT pg_drop_replication_slot\('gone'\);`).FindString(f.Remedy))
		want(t, examine(t, db), "replication", doctor.OK, "", "0 replication slots")
	})
}

// waitFor polls.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen within 20 s")
		}
	}
}
