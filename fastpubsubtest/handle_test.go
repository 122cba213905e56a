package fastpubsubtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/fastpubsubtest"
	"github.com/fastpubsub/fastpubsub/internal/leaktest"
)

func succeed(context.Context, fastpubsub.Message) error { return nil }

var errNoMail = errors.New("no mail today")

func returns(err error) fastpubsub.Handler {
	return func(context.Context, fastpubsub.Message) error { return err }
}

var order = fastpubsub.NewMessage{Payload: []byte(`{"order": 7}`), Attributes: map[string]string{"kind": "gift"}}

// outcome is what is compared of an Outcome.
type outcome struct {
	State     fastpubsubtest.State
	Delay     time.Duration
	Attempts  int
	LastError string // the first line
	Err       error
}

func outcomeOf(o fastpubsubtest.Outcome) outcome {
	first, _, _ := strings.Cut(o.LastError, "\n")
	return outcome{o.State, o.Delay, o.Attempts, first, o.Err}
}

func TestHandle(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	kit.Subscribe(t, fastpubsub.Subscription{ID: "strict", TopicID: "orders", SubscriptionSettings: fastpubsub.SubscriptionSettings{
		MaxDeliveryAttempts: 2, BackoffMin: 7 * time.Second, BackoffMax: 8 * time.Second, AckDeadline: 9 * time.Second}})
	for _, tc := range []struct {
		name    string
		handle  fastpubsub.Handler
		options fastpubsubtest.HandleOptions
		want    outcome
	}{
		{"Acked", succeed, fastpubsubtest.HandleOptions{}, outcome{State: fastpubsubtest.Acked, Attempts: 1}},
		{"AckedLate", succeed, fastpubsubtest.HandleOptions{Attempt: 5}, outcome{State: fastpubsubtest.Acked, Attempts: 5}},
		{"Nacked", returns(errNoMail), fastpubsubtest.HandleOptions{},
			outcome{fastpubsubtest.Nacked, 5 * time.Second, 1, "no mail today", errNoMail}},
		{"NackedAgain", returns(errNoMail), fastpubsubtest.HandleOptions{Attempt: 3},
			outcome{fastpubsubtest.Nacked, 20 * time.Second, 3, "no mail today", errNoMail}},
		{"Last", returns(errNoMail), fastpubsubtest.HandleOptions{Attempt: 5},
			outcome{fastpubsubtest.DeadLettered, 0, 5, "no mail today", errNoMail}},
		{"Permanent", returns(fastpubsub.Permanent(errNoMail)), fastpubsubtest.HandleOptions{},
			outcome{fastpubsubtest.DeadLettered, 0, 1, "no mail today", fastpubsub.Permanent(errNoMail)}},
		{"Snoozed", returns(fastpubsub.Snooze(90 * time.Second)), fastpubsubtest.HandleOptions{},
			outcome{fastpubsubtest.Snoozed, 90 * time.Second, 0, "", fastpubsub.Snooze(90 * time.Second)}},
		{"SnoozedLate", returns(fastpubsub.Snooze(0)), fastpubsubtest.HandleOptions{Attempt: 2},
			outcome{fastpubsubtest.Snoozed, 0, 1, "an earlier attempt failed", fastpubsub.Snooze(0)}},
		{"Panic", func(context.Context, fastpubsub.Message) error { panic("oh") }, fastpubsubtest.HandleOptions{},
			outcome{fastpubsubtest.Nacked, 5 * time.Second, 1, "panic: oh", errors.New("panic: oh")}},
		{"Settings", returns(errNoMail), fastpubsubtest.HandleOptions{Subscription: "strict"},
			outcome{fastpubsubtest.Nacked, 7 * time.Second, 1, "no mail today", errNoMail}},
		{"SettingsLast", returns(errNoMail), fastpubsubtest.HandleOptions{Subscription: "strict", Attempt: 2},
			outcome{fastpubsubtest.DeadLettered, 0, 2, "no mail today", errNoMail}},
		{"Crash", succeed, fastpubsubtest.HandleOptions{Fault: fastpubsubtest.CrashAfterHandler},
			outcome{State: fastpubsubtest.Unsettled, Delay: time.Minute, Attempts: 1}},
		{"CrashLate", succeed, fastpubsubtest.HandleOptions{Fault: fastpubsubtest.CrashAfterHandler, Attempt: 2, Subscription: "strict"},
			outcome{State: fastpubsubtest.Unsettled, Delay: 9 * time.Second, Attempts: 2, LastError: "an earlier attempt failed"}},
		{"LostAck", succeed, fastpubsubtest.HandleOptions{Fault: fastpubsubtest.LostAck},
			outcome{State: fastpubsubtest.Unsettled, Delay: time.Minute, Attempts: 1}},
		{"LostNack", returns(errNoMail), fastpubsubtest.HandleOptions{Fault: fastpubsubtest.LostAck},
			outcome{State: fastpubsubtest.Unsettled, Delay: time.Minute, Attempts: 1, Err: errNoMail}},
		{"PanicCrash", func(context.Context, fastpubsub.Message) error { panic("oh") }, fastpubsubtest.HandleOptions{Fault: fastpubsubtest.CrashAfterHandler},
			outcome{State: fastpubsubtest.Unsettled, Delay: time.Minute, Attempts: 1, Err: errors.New("panic: oh")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := kit.Handle(t, tc.handle, order, tc.options)
			byText := cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
			if diff := cmp.Diff(tc.want, outcomeOf(got), byText); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if msg := got.Message; string(msg.Payload) != string(order.Payload) || msg.Attributes["kind"] != "gift" || msg.DeliveryAttempts != max(tc.options.Attempt, 1) {
				t.Errorf("the handler got %+v", msg)
			}
		})
	}
	t.Cleanup(func() { // after the subtests
		topics, err := kit.Broker.ListTopics(context.Background(), fastpubsub.ListOptions{})
		if err != nil || len(topics) != 1 {
			t.Errorf("topics are left: %v %v", topics, err)
		}
		if n := count(fakeContext{t}, kit, "SELECT count(*) FROM "+pgx.Identifier{kit.Schema, "subscriptions"}.Sanitize()); n != 2 {
			t.Errorf("there are %d subscriptions, want 2", n)
		}
	})
}

// fakeContext is a test whose Context has not ended in Cleanup.
type fakeContext struct{ testing.TB }

func (fakeContext) Context() context.Context { return context.Background() }

func TestHandleTx(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	exec(t, kit, "CREATE TABLE invoices (test text)")
	for _, tc := range []struct {
		name  string
		err   error
		fault fastpubsubtest.Fault
		want  outcome
		rows  int
	}{
		{"Acked", nil, fastpubsubtest.NoFault, outcome{State: fastpubsubtest.Acked, Attempts: 1}, 1},
		{"Nacked", errNoMail, fastpubsubtest.NoFault, outcome{fastpubsubtest.Nacked, 5 * time.Second, 1, "no mail today", errNoMail}, 0},
		{"Crash", nil, fastpubsubtest.CrashAfterHandler, outcome{State: fastpubsubtest.Unsettled, Delay: time.Minute, Attempts: 1}, 0},
		{"LostAck", nil, fastpubsubtest.LostAck, outcome{State: fastpubsubtest.Acked, Attempts: 1}, 1},
		{"LostNack", errNoMail, fastpubsubtest.LostAck, outcome{State: fastpubsubtest.Unsettled, Delay: time.Minute, Attempts: 1, Err: errNoMail}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := kit.HandleTx(t, func(ctx context.Context, tx pgx.Tx, msg fastpubsub.Message) error {
				if _, err := tx.Exec(ctx, "INSERT INTO invoices VALUES ($1)", t.Name()); err != nil {
					return err
				}
				return tc.err
			}, order, fastpubsubtest.HandleOptions{Fault: tc.fault})
			if diff := cmp.Diff(tc.want, outcomeOf(got), cmp.Comparer(func(a, b error) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if n := count(t, kit, "SELECT count(*) FROM invoices WHERE test = $1", t.Name()); n != tc.rows {
				t.Errorf("there are %d rows, want %d", n, tc.rows)
			}
		})
	}
}

func TestHandleRefuses(t *testing.T) {
	t.Parallel()
	kit := newKit(t)
	for _, tc := range []struct {
		name    string
		handle  fastpubsub.Handler
		msg     fastpubsub.NewMessage
		options fastpubsubtest.HandleOptions
		says    string
	}{
		{"Attempt", succeed, order, fastpubsubtest.HandleOptions{Attempt: 6}, "HandleOptions.Attempt must be 1 to 5, the MaxDeliveryAttempts, not 6"},
		{"NegativeAttempt", succeed, order, fastpubsubtest.HandleOptions{Attempt: -1}, "not -1"},
		{"Fault", succeed, order, fastpubsubtest.HandleOptions{Fault: "fire"}, `HandleOptions.Fault must be NoFault, CrashAfterHandler or LostAck, not "fire"`},
		{"Subscription", succeed, order, fastpubsubtest.HandleOptions{Subscription: "email"}, `HandleOptions.Subscription: get subscription "email": not found`},
		{"Payload", succeed, fastpubsub.NewMessage{Payload: []byte("7")}, fastpubsubtest.HandleOptions{}, "messages.0.payload"},
		{"Handler", nil, order, fastpubsubtest.HandleOptions{}, "handler: must not be nil"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			mustSay(t, fake(t.Name(), func(t testing.TB) { kit.Handle(t, tc.handle, tc.msg, tc.options) }), "Handle: ", tc.says)
		})
	}
}

// TestHandleFatal has a handler that ends its test.
func TestHandleFatal(t *testing.T) {
	leaktest.Check(t)
	kit := newKit(t)
	said := fake(t.Name(), func(t testing.TB) {
		got := kit.Handle(t, func(context.Context, fastpubsub.Message) error {
			t.Fatal("not this one")
			return nil
		}, order, fastpubsubtest.HandleOptions{})
		if got.State != fastpubsubtest.Nacked || got.Err == nil {
			t.Errorf("the outcome is %+v", got)
		}
	})
	if said != "not this one" {
		t.Errorf("it said %q", said)
	}
}
