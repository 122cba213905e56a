package fastpubsubtest_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/fastpubsubtest"
	"github.com/fastpubsub/fastpubsub/internal/leaktest"
)

// attempts are the deliveries of each call.
func attempts(calls []fastpubsubtest.Call) []int {
	var all []int
	for _, call := range calls {
		all = append(all, call.Message.DeliveryAttempts)
	}
	return all
}

func TestDrain(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	publish(t, kit, "orders", `{"n":1}`)
	before := kit.Now(t)
	got := kit.Drain(t, "emails", func(_ context.Context, msg fastpubsub.Message) error {
		if msg.DeliveryAttempts < 3 {
			return errNoMail
		}
		return nil
	}, fastpubsubtest.DrainOptions{})
	if got.Acked != 1 || len(got.DeadLetters) != 0 || got.Left != 0 {
		t.Errorf("drained %+v", got)
	}
	if !slices.Equal(attempts(got.Calls), []int{1, 2, 3}) || got.Calls[1].Err != errNoMail || got.Calls[2].Err != nil {
		t.Errorf("calls were %+v", got.Calls)
	}
	if moved := kit.Now(t).Sub(before); got.Advanced != 15*time.Second || moved != got.Advanced {
		t.Errorf("it says that the clock was moved by %v, and it was by %v; want 5s and 10s", got.Advanced, moved)
	}
	if got := kit.Drain(t, "emails", succeed, fastpubsubtest.DrainOptions{}); len(got.Calls) != 0 || got.Acked != 0 || got.Advanced != 0 {
		t.Errorf("an empty subscription was drained of %+v", got)
	}
}

func TestDrainDeadLetters(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	fail := func(_ context.Context, msg fastpubsub.Message) error {
		switch string(msg.Payload) {
		case `{"n":1}`:
			return errNoMail
		case `{"n":2}`:
			return fastpubsub.Permanent(errNoMail)
		}
		return nil
	}
	ids := publish(t, kit, "orders", `{"n":1}`, `{"n":2}`, `{"n":3}`)
	got := kit.Drain(t, "emails", fail, fastpubsubtest.DrainOptions{})
	if got.Acked != 1 || len(got.DeadLetters) != 2 || got.DeadLetters[0].ID != ids[1] || got.DeadLetters[1].ID != ids[0] || got.DeadLetters[1].LastError != "no mail today" {
		t.Errorf("drained %+v", got)
	}
	if len(got.Calls) != 7 || got.Advanced != (5+10+20+40)*time.Second {
		t.Errorf("%d calls in %v", len(got.Calls), got.Advanced)
	}
	publish(t, kit, "orders", `{"n":3}`)
	if n, err := kit.Broker.Reprocess(t.Context(), "emails", ids[1:2]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	got = kit.Drain(t, "emails", fail, fastpubsubtest.DrainOptions{}) // what is dead again is new
	if got.Acked != 1 || len(got.DeadLetters) != 1 || got.DeadLetters[0].ID != ids[1] || len(got.Calls) != 2 {
		t.Errorf("drained %+v", got)
	}
}

func TestDrainSnoozed(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	publish(t, kit, "orders", `{"n":1}`)
	times := 0
	got := kit.Drain(t, "emails", func(context.Context, fastpubsub.Message) error {
		if times++; times < 4 {
			return fastpubsub.Snooze(time.Duration(times-1) * time.Hour)
		}
		return nil
	}, fastpubsubtest.DrainOptions{})
	if !slices.Equal(attempts(got.Calls), []int{1, 1, 1, 1}) || got.Acked != 1 || got.Advanced != 3*time.Hour {
		t.Errorf("drained %+v", got)
	}
}

// TestDrainWaitsForOthers has a message with somebody who does not come back, and one that nobody has extended.
func TestDrainWaitsForOthers(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	publish(t, kit, "orders", `{"n":1}`, `{"n":2}`)
	msgs := consume(t, kit, "emails")
	if n, err := kit.Broker.Extend(t.Context(), "emails", []fastpubsub.Delivery{msgs[0].Delivery}, time.Hour); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	got := kit.Drain(t, "emails", succeed, fastpubsubtest.DrainOptions{})
	if !slices.Equal(attempts(got.Calls), []int{2, 2}) || got.Acked != 2 || got.Advanced != time.Hour {
		t.Errorf("drained %+v", got)
	}
}

func TestDrainFilter(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	filter, err := fastpubsub.ParseFilter([]byte(`{"n": [2, 4]}`))
	if err != nil {
		t.Fatal(err)
	}
	kit.Subscribe(t, fastpubsub.Subscription{ID: "even", TopicID: "orders", Filter: filter})
	for n := range 5 {
		publish(t, kit, "orders", fmt.Sprintf(`{"n":%d}`, n))
	}
	if got := kit.Drain(t, "even", succeed, fastpubsubtest.DrainOptions{}); got.Acked != 2 || len(got.Calls) != 2 || got.Advanced != 0 {
		t.Errorf("drained %+v", got)
	}
}

// TestDrainFaults has handlers that are not idempotent, which the table shows, and one that is.
func TestDrainFaults(t *testing.T) {
	leaktest.Check(t)
	for _, tc := range []struct {
		name  string
		fault fastpubsubtest.Fault
		tx    bool
		key   string
		calls int // of 3 messages
		rows  int
	}{
		{"Crash", fastpubsubtest.CrashAfterHandler, false, "", 6, 6},
		{"LostAck", fastpubsubtest.LostAck, false, "", 6, 6},
		{"CrashIdempotent", fastpubsubtest.CrashAfterHandler, false, "PRIMARY KEY", 6, 3},
		{"CrashTx", fastpubsubtest.CrashAfterHandler, true, "", 6, 3},
		{"LostAckTx", fastpubsubtest.LostAck, true, "", 3, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			kit := newKit(t)
			exec(t, kit, "CREATE TABLE invoices (id uuid "+tc.key+")")
			publish(t, kit, "orders", `{"n":1}`, `{"n":2}`, `{"n":3}`)
			const insert = "INSERT INTO invoices VALUES ($1) ON CONFLICT DO NOTHING"
			options := fastpubsubtest.DrainOptions{Fault: fastpubsubtest.FirstDelivery(tc.fault)}
			var got fastpubsubtest.Drained
			if tc.tx {
				got = kit.DrainTx(t, "emails", func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
					_, err := tx.Exec(ctx, insert, msg.ID.String())
					return err
				}, options)
			} else {
				got = kit.Drain(t, "emails", func(ctx context.Context, msg fastpubsub.Message) error {
					_, err := kit.Pool.Exec(ctx, insert, msg.ID.String())
					return err
				}, options)
			}
			if got.Acked != 3 || len(got.Calls) != tc.calls || got.Calls[0].Fault != tc.fault || got.Left != 0 {
				t.Errorf("drained %+v", got)
			}
			if n := count(t, kit, "SELECT count(*) FROM invoices"); n != tc.rows {
				t.Errorf("there are %d rows, want %d", n, tc.rows)
			}
		})
	}
}

// TestDrainAlwaysCrashes ends with dead letters: attempts are counted by delivery.
func TestDrainAlwaysCrashes(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	publish(t, kit, "orders", `{"n":1}`)
	got := kit.Drain(t, "emails", succeed, fastpubsubtest.DrainOptions{
		Fault: func(fastpubsub.Message) fastpubsubtest.Fault { return fastpubsubtest.CrashAfterHandler }})
	if !slices.Equal(attempts(got.Calls), []int{1, 2, 3, 4, 5}) || got.Acked != 0 || len(got.DeadLetters) != 1 || got.Advanced != 5*time.Minute {
		t.Errorf("drained %+v", got)
	}
}

func TestDrainBounds(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	publish(t, kit, "orders", `{"n":1}`)
	snooze := returns(fastpubsub.Snooze(time.Hour))

	said := fake(t.Name(), func(t testing.TB) {
		kit.Drain(t, "emails", snooze, fastpubsubtest.DrainOptions{MaxAdvance: 12 * time.Hour})
	})
	mustSay(t, said, `Drain: subscription "emails" still has 1 messages when the clock would have moved on by more than 12h0m0s: 1 wait for their time, `+
		`0 are ready, 0 are with a consumer or in a transaction`, "0 were acked and 0 became dead letters, in 13 calls of the handler, of which these are the last:",
		" attempt 1: snoozed for 1h0m0s")

	got := kit.Drain(t, "emails", snooze, fastpubsubtest.DrainOptions{MaxAdvance: time.Hour, MayLeave: true})
	if got.Left != 1 || len(got.Calls) != 1 || got.Advanced != time.Hour {
		t.Errorf("drained %+v", got)
	}

	// Each round begins at once, without end.
	said = fake(t.Name(), func(t testing.TB) {
		kit.Drain(t, "emails", returns(fastpubsub.Snooze(0)), fastpubsubtest.DrainOptions{Timeout: time.Second})
	})
	mustSay(t, said, `Drain: subscription "emails" still has 1 messages after 1s: `)
	got = kit.Drain(t, "emails", returns(fastpubsub.Snooze(0)), fastpubsubtest.DrainOptions{Timeout: time.Second, MayLeave: true})
	if got.Left != 1 || len(got.Calls) == 0 {
		t.Errorf("drained %+v", got)
	}
	if got := kit.Drain(t, "emails", succeed, fastpubsubtest.DrainOptions{}); got.Acked != 1 {
		t.Errorf("drained %+v", got)
	}
}

func TestDrainRefuses(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	publish(t, kit, "orders", `{"n":1}`)
	for _, tc := range []struct {
		name, id string
		handle   fastpubsub.Handler
		options  fastpubsubtest.DrainOptions
		says     string
	}{
		{"Subscription", "email", succeed, fastpubsubtest.DrainOptions{}, `"email": not found`},
		{"Handler", "emails", nil, fastpubsubtest.DrainOptions{}, "handler: must not be nil"},
		{"Timeout", "emails", succeed, fastpubsubtest.DrainOptions{Timeout: -1}, "must not be negative"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mustSay(t, fake(t.Name(), func(t testing.TB) { kit.Drain(t, tc.id, tc.handle, tc.options) }), "Drain: ", tc.says)
		})
	}
	t.Run("Fault", func(t *testing.T) { // after all else, since the handler runs
		mustSay(t, fake(t.Name(), func(t testing.TB) {
			kit.Drain(t, "emails", succeed, fastpubsubtest.DrainOptions{Fault: fastpubsubtest.FirstDelivery("fire")})
		}), `Fault must be NoFault, CrashAfterHandler or LostAck, not "fire"`)
	})
}
