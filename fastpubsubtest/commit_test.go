package fastpubsubtest_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/fastpubsubtest"
	"github.com/fastpubsub/fastpubsub/internal/leaktest"
)

// publishIn publishes in a transaction of its own.
func publishIn(ctx context.Context, kit *fastpubsubtest.Kit, payload string) error {
	return pgx.BeginFunc(ctx, kit.Pool, func(tx pgx.Tx) error {
		_, err := kit.Broker.PublishTx(ctx, tx, "orders", fastpubsub.NewMessage{Payload: []byte(payload)})
		return err
	})
}

func TestLoseCommit(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	kit.LoseCommit(t)
	tx, err := kit.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := kit.Broker.PublishTx(t.Context(), tx, "orders", fastpubsub.NewMessage{Payload: []byte(`{"n":1}`)}); err != nil {
		t.Fatal(err)
	}
	kit.RequireNotPublished(t, "orders", fastpubsubtest.Match{})
	if err := tx.Commit(t.Context()); !errors.Is(err, pgconn.ErrConnClosed) { // pgx's for whatever breaks
		t.Fatalf("the error is %v", err)
	}
	kit.RequirePublished(t, "orders", fastpubsubtest.Match{Payload: `{"n":1}`, Count: 1})
	// It was that one commit.
	if err := publishIn(t.Context(), kit, `{"n":2}`); err != nil {
		t.Fatal(err)
	}
	kit.RequirePublished(t, "orders", fastpubsubtest.Match{Count: 2})
}

// TestLoseCommitOfReceiveTx has the commit of a handler's own transaction lost, and that of ReceiveTx.
func TestLoseCommitOfReceiveTx(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	exec(t, kit, "CREATE TABLE invoices (n int)")
	publish(t, kit, "orders", `{"n":1}`)
	kit.LoseCommit(t)
	got := kit.DrainTx(t, "emails", func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
		_, err := tx.Exec(ctx, "INSERT INTO invoices VALUES (1)")
		return err
	}, fastpubsubtest.DrainOptions{})
	if len(got.Calls) != 1 || got.Acked != 1 || count(t, kit, "SELECT count(*) FROM invoices") != 1 {
		t.Errorf("drained %+v", got)
	}

	publish(t, kit, "orders", `{"n":2}`)
	kit.LoseCommit(t)
	got = kit.Drain(t, "emails", func(ctx context.Context, msg fastpubsub.Message) error {
		return pgx.BeginFunc(ctx, kit.Pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO invoices VALUES (2)")
			return err
		})
	}, fastpubsubtest.DrainOptions{})
	if len(got.Calls) != 2 || got.Calls[0].Err == nil || got.Acked != 1 || count(t, kit, "SELECT count(*) FROM invoices WHERE n = 2") != 2 {
		t.Errorf("drained %+v", got)
	}
}

func TestHoldCommit(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	held := kit.HoldCommit(t)
	done := make(chan error, 1)
	go func() { done <- publishIn(t.Context(), kit, `{"n":1}`) }()
	held.Wait(t)
	publish(t, kit, "orders", `{"n":2}`)
	if got := payloads(consume(t, kit, "emails")); !slices.Equal(got, []string{`{"n":2}`}) {
		t.Errorf("consumed %q before the commit", got)
	}
	kit.RequireNotPublished(t, "orders", fastpubsubtest.Match{Payload: `{"n":1}`})
	select {
	case err := <-done:
		t.Fatalf("the commit did not wait: %v", err)
	default:
	}
	held.Release()
	held.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := payloads(consume(t, kit, "emails")); !slices.Equal(got, []string{`{"n":1}`}) {
		t.Errorf("consumed %q after the commit", got)
	}
}

// TestHoldCommitCancelled has a publisher who does not wait for ever.
func TestHoldCommitCancelled(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	held := kit.HoldCommit(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- publishIn(ctx, kit, `{"n":1}`) }()
	held.Wait(t)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	kit.RequireNotPublished(t, "orders", fastpubsubtest.Match{})
}

func TestUnusedCommitFaults(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	said := fake(t.Name(), func(t testing.TB) { kit.LoseCommit(t) })
	if said != "LoseCommit: no transaction was committed" {
		t.Errorf("it said %q", said)
	}
	said = fake(t.Name(), func(t testing.TB) {
		kit.HoldCommit(t)
		if err := pgx.BeginFunc(t.Context(), kit.Pool, func(tx pgx.Tx) error { return errNoMail }); err != errNoMail { // a rollback
			t.Fatal(err)
		}
		publish(t, kit, "orders", `{"n":1}`) // outside of transactions
		consume(t, kit, "emails")
	})
	if said != "HoldCommit: no transaction was committed" {
		t.Errorf("it said %q", said)
	}
	if err := publishIn(t.Context(), kit, `{"n":2}`); err != nil { // neither goes on
		t.Error(err)
	}
}

// TestHoldCommitReleasedAtTheEnd has a test that forgets to release.
func TestHoldCommitReleasedAtTheEnd(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	done := make(chan error, 1)
	said := fake(t.Name(), func(tb testing.TB) {
		held := kit.HoldCommit(tb)
		go func() { done <- publishIn(context.Background(), kit, `{"n":1}`) }()
		held.Wait(tb)
	})
	if said != "" {
		t.Errorf("it said %q", said)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the commit still waits")
	}
}
