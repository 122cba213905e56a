package fastpubsub_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	command "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/pgserver"
	"github.com/fastpubsub/fastpubsub/migrations"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// TestPromotion promotes a standby that has not got the last messages of its primary. Consumers may have had those: no id
// of them is given to another message. What the standby has got is delivered.
func TestPromotion(t *testing.T) {
	t.Parallel()
	if err := promote(t, nil); err != nil {
		t.Error(err)
	}
}

// TestPromotionWithoutJump shows that TestPromotion would see an id that is given out twice.
func TestPromotionWithoutJump(t *testing.T) {
	t.Parallel()
	err := promote(t, &protection{"follow_timeline", "IF here <> (SELECT last_value FROM {schema}.timeline) THEN", "IF false THEN"})
	if err == nil {
		t.Fatal("without the protection no id is given out twice")
	}
	t.Logf("as it should: %v", err)
}

func promote(t *testing.T, without *protection) error {
	t.Helper()
	folder := openTempDir(t)
	primaryFolder, standbyFolder := filepath.Join(folder, "primary"), filepath.Join(folder, "standby")
	primary := startIn(t, pgserver.Options{Dir: primaryFolder})
	db := migrated(t, primary)
	if without != nil {
		takeOut(t, db, *without)
	}
	b := brokerOf(t, db)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	have := publish(t, b, "t", numbered(0, 3)...)

	// The same files, two servers: as pg_basebackup makes them.
	db.Pool.Close()
	if err := primary.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := command.CommandContext(t.Context(), "cp", "-a", primaryFolder, standbyFolder).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	primary = startIn(t, pgserver.Options{Dir: primaryFolder})
	if err := os.WriteFile(filepath.Join(standbyFolder, "data", "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	asStandby := pgserver.Options{Dir: standbyFolder, Settings: map[string]string{"primary_conninfo": primary.URL()}}
	standby := startIn(t, asStandby)
	replica := connect(t, standby, db.Schema)
	db = connect(t, primary, db.Schema)
	b = brokerOf(t, db)
	have = append(have, publish(t, b, "t", numbered(3, 4)...)...)
	waitFor(t, replica, "replication", `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`,
		query[string](t, db, `SELECT pg_current_wal_insert_lsn()::text`))

	// It is cut off from here on.
	replica.Pool.Close()
	if err := standby.Stop(); err != nil {
		t.Fatal(err)
	}
	lost := map[string]bool{}
	for i := range 100 { // one at a time: the WAL has the sequence some numbers ahead
		lost[seqOf(publish(t, b, "t", numbered(1000+i, 1)...)[0])] = true
	}
	db.Pool.Close()
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}

	standby = startIn(t, asStandby)
	replica = connect(t, standby, db.Schema)
	b = brokerOf(t, replica)
	if _, err := b.Publish(t.Context(), "t", numbered(0, 1)...); err == nil { // in a session that outlives the promotion
		t.Error("published on a standby")
	}
	exec(t, replica, `SELECT pg_promote()`)
	var errs []error
	for i := range 100 {
		id := publish(t, b, "t", numbered(2000+i, 1)...)[0]
		if lost[seqOf(id)] {
			errs = append(errs, fmt.Errorf("the end of this id had been given out before: %v", id))
		}
		have = append(have, id)
	}
	timelines := query[int](t, replica, `SELECT last_value FROM {schema}.timeline`)
	if without == nil && timelines != 2 {
		t.Errorf("timeline %d", timelines)
	}
	waitForOpen(t, replica)
	return errors.Join(append(errs, wantDelivered(t, b, "s", 50, have...), b.Check(t.Context()))...)
}

// seqOf is the part of an id that is unique by itself.
func seqOf(id fastpubsub.ID) string { return string(id[8:]) }

// TestPgUpgrade moves the files of a cluster into a new one, with everything in them.
func TestPgUpgrade(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(openTempDir(t), "cluster")
	srv := startIn(t, pgserver.Options{Dir: folder})
	if _, err := os.Stat(filepath.Join(srv.Bin(), "pg_upgrade")); err != nil {
		t.Skipf("NOT TESTED: %s needs pg_upgrade beside the server: %v", t.Name(), err)
	}
	db := migrated(t, srv)
	b := brokerOf(t, db)
	held, open := everyState(t, b, db)
	if err := open.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	bases := query[int64](t, db, `SELECT last_value FROM {schema}.message_base`)
	db.Pool.Close()
	if err := srv.Stop(); err != nil {
		t.Fatal(err)
	}

	hba := filepath.Join(folder, "data", "pg_hba.conf")
	before, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hba, []byte("local all all trust\n"), 0o600); err != nil { // sockets of our own folder only
		t.Fatal(err)
	}
	script := `
set -eu
PATH=$1:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
initdb -D data -U fastpubsub --encoding UTF8 --locale C --auth trust --no-sync
pg_upgrade -b "$1" -B "$1" -d "$2" -D "$PWD/data" -U fastpubsub -s "$PWD" -p "$3" -P "$4"
cp -a data/. "$2".upgraded
echo upgraded
`
	upgraded := filepath.Join(folder, "data.upgraded")
	if err := os.Mkdir(upgraded, 0o700); err != nil {
		t.Fatal(err)
	}
	chownLike(t, upgraded, filepath.Join(folder, "data"))
	upgrade, err := pgserver.StartCompanion(t.Context(), "/usr/bin/env",
		[]string{"sh", "-c", script, "sh", srv.Bin(), filepath.Join(folder, "data"), freePort(t), freePort(t)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-upgrade.Done()
	out, err := upgrade.Stop()
	if err != nil || !strings.HasSuffix(out, "upgraded\n") {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := errors.Join(
		os.Rename(filepath.Join(folder, "data"), filepath.Join(folder, "data.old")),
		os.Rename(upgraded, filepath.Join(folder, "data")),
		os.WriteFile(filepath.Join(folder, "data", "pg_hba.conf"), before, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	chownLike(t, hba, filepath.Join(folder, "data"))

	db = connect(t, startIn(t, pgserver.Options{Dir: folder}), db.Schema)
	b = brokerOf(t, db)
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	waitForOpen(t, db)
	for sub, s := range stateOf(t, b, held) {
		if s.Metrics.Available != int64(len(s.Delivered))+s.Metrics.Delayed {
			t.Errorf("%s: %d messages delivered, metrics were %+v", sub, len(s.Delivered), s.Metrics)
		}
	}
	news := publish(t, b, "t", numbered(5000, 3)...)
	waitForOpen(t, db)
	if err := wantDelivered(t, b, "untouched", 10, news...); err != nil {
		t.Error(err)
	}
	if n := query[int64](t, db, `SELECT last_value FROM {schema}.message_base`); n <= bases {
		t.Errorf("bases began anew: %d after %d", n, bases)
	}
}

func chownLike(t *testing.T, path, other string) {
	t.Helper()
	if out, err := command.CommandContext(t.Context(), "chown", "--reference="+other, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, bytes.TrimSpace(out))
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	port, err := pgserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(port)
}

// openTempDir is a temporary folder that the account may enter which root starts servers as.
func openTempDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o711), os.Chmod(filepath.Dir(dir), 0o711)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startIn starts a server that keeps its data, and stops it when the test has ended.
func startIn(t *testing.T, options pgserver.Options) *pgserver.Server {
	t.Helper()
	srv, err := pgserver.Start(t.Context(), options)
	if errors.Is(err, pgserver.ErrNoBinaries) || errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("NOT TESTED: %s needs servers of its own: %v", t.Name(), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Stop(); err != nil {
			t.Error(err)
		}
	})
	return srv
}

// migrated makes a schema on a server.
func migrated(t *testing.T, srv *pgserver.Server) *storetest.DB {
	t.Helper()
	const schema = "fastpubsub"
	db := connect(t, srv, schema)
	if err := migrations.Up(t.Context(), db.Pool.Config().ConnConfig, schema); err != nil {
		t.Fatal(err)
	}
	return db
}

func connect(t *testing.T, srv *pgserver.Server, schema string) *storetest.DB {
	t.Helper()
	return connectURL(t, srv.URL(), schema)
}

func connectURL(t *testing.T, url, schema string) *storetest.DB {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["search_path"] = ""
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &storetest.DB{Pool: pool, Schema: schema, URL: url}
}
