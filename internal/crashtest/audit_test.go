package crashtest

import (
	"slices"
	"strings"
	"testing"

	"github.com/fastpubsub/fastpubsub"
)

// call is the two entries of a call that ends.
func call(caller string, c Call, count int, msgs ...Message) []Entry {
	return []Entry{
		{Caller: caller, Call: c, Subscription: "s", Messages: withoutIDs(msgs)},
		{Caller: caller, Call: c, Subscription: "s", Ended: true, Messages: msgs, Count: count},
	}
}

// cutShort is a call that begins only, undone one that did nothing.
func cutShort(entries []Entry) []Entry { return entries[:1] }

func undone(entries []Entry) []Entry {
	entries[1].Undone, entries[1].Count = true, 0
	return entries
}

func published(caller string, msgs ...Message) []Entry {
	entries := call(caller, Publish, len(msgs), msgs...)
	for i := range entries {
		entries[i].Subscription, entries[i].Topic = "", "t"
	}
	return entries
}

func attempt(n, attempts int) Message {
	return Message{N: n, ID: fastpubsub.ID{15: byte(n)}, Attempts: attempts}
}

func subscribed(made Made) []Entry {
	entries := call("for s", Subscribe, 0)
	entries[0].Made = &made
	return entries
}

// TestAuditor has ledgers in which something is wrong, each in one way, and one in which nothing is: the auditor finds that, and
// nothing else.
func TestAuditor(t *testing.T) {
	t.Parallel()
	m, again := attempt(1, 1), attempt(1, 2)
	made := Made{Topic: "t", Attempts: 3}
	rest := func(acked, dead int64) Rest {
		m := fastpubsub.Metrics{Acked: acked, DeadLetters: dead}
		return Rest{Before: m, After: m}
	}
	letters := func(r Rest, msgs ...Message) Rest {
		r.DeadLetters = msgs
		return r
	}
	effects := func(r Rest, n int) Rest {
		r.Effects = map[int]int{1: n}
		return r
	}
	for _, test := range []struct {
		name    string
		made    Made
		entries [][]Entry
		rest    Rest
		want    string // nothing else is found; "" is nothing
	}{
		{"as it should be", made, [][]Entry{published("p", m, attempt(2, 0)), call("c", Consume, 1, m), call("c", Nack, 1, m),
			call("d", Consume, 2, again, attempt(2, 1)), call("d", Ack, 2, again, attempt(2, 1))}, rest(2, 0), ""},
		{"an ack was cut off and has happened", made, [][]Entry{published("p", m), call("c", Consume, 1, m), cutShort(call("c", Ack, 1, m))}, rest(1, 0), ""},
		{"a publish was cut off and has not happened", made, [][]Entry{cutShort(published("p", m))}, rest(0, 0), ""},
		{"a claim was lost in a crash", made, [][]Entry{published("p", m), call("c", Consume, 1, m),
			{{Call: Crash}, {Call: Crash, Ended: true}}, call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0), ""},
		{"reprocessed", made, [][]Entry{published("p", m), call("c", Consume, 1, attempt(1, 3)), call("c", Nack, 1, attempt(1, 3)),
			call("u", Reprocess, 1, m), call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0), ""},
		{"purged", made, [][]Entry{published("p", m), call("c", Consume, 1, attempt(1, 3)), call("u", Purge, 1, m)}, rest(0, 0), ""},
		{"an effect", Made{Topic: "t", Attempts: 3, Receives: true, Effects: true}, [][]Entry{published("p", m), call("h", Handle, 1, m)},
			effects(rest(1, 0), 1), ""},

		{"lost", made, [][]Entry{published("p", m)}, rest(0, 0), "is lost"},
		{"delivered and lost", made, [][]Entry{published("p", m), call("c", Consume, 1, m)}, rest(0, 0), "is lost\nmetrics"},
		{"a message that was rolled back", made, [][]Entry{undone(published("p", m)), call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0),
			"was rolled back, and delivered"},
		{"a part of a publish that was cut off", made, [][]Entry{cutShort(published("p", m, attempt(2, 0))), call("c", Consume, 1, m), call("c", Ack, 1, m)},
			rest(1, 0), "of 2 messages 1 are there"},
		{"acked twice", made, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Ack, 1, m), call("d", Ack, 1, m)}, rest(2, 0),
			"was acked by two calls\nmetrics"},
		{"delivered after the ack", made, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Ack, 1, m), call("d", Consume, 1, again)}, rest(1, 0),
			"was delivered again after it had been acked"},
		{"an ack that a crash forgot", made, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Ack, 1, m),
			{{Call: Crash, Ended: true}}, call("d", Consume, 1, m)}, rest(1, 0), "was delivered again after it had been acked"},
		{"a message that never was", made, [][]Entry{call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0), "was never published"},
		{"another payload", made, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Ack, 1, m), call("c", Consume, 1, Message{N: -1, Attempts: 1}),
			call("c", Ack, 1, Message{N: -1})}, rest(2, 0), "was never published"},
		{"two ids", made, [][]Entry{published("p", m), call("c", Consume, 1, Message{N: 1, ID: fastpubsub.ID{9}, Attempts: 1}), call("c", Ack, 1, m)}, rest(1, 0), "has two ids"},
		{"one id for two", made, [][]Entry{published("p", m), published("p", Message{N: 2, ID: m.ID}), call("c", Consume, 1, m), call("c", Ack, 1, m),
			call("c", Consume, 1, Message{N: 2, Attempts: 1}), call("c", Ack, 1, Message{N: 2})}, rest(2, 0), "has, too"},
		{"of another topic", Made{Topic: "u", Attempts: 3}, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0), "was published to t"},
		{"not through the filter", Made{Topic: "t", Attempts: 3, Kinds: []int{2}}, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0),
			"the filter does not let it through"},
		{"an attempt too many", made, [][]Entry{published("p", m), call("c", Consume, 1, attempt(1, 4)), call("c", Ack, 1, m)}, rest(1, 0), "attempt 4 of 3"},
		{"the same attempt again", made, [][]Entry{published("p", m), call("c", Consume, 1, m), call("d", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0),
			"as attempt 1 after attempt 1"},
		{"alive after its last attempt", made, [][]Entry{published("p", m), call("c", Consume, 1, attempt(1, 3)), call("c", Nack, 1, attempt(1, 3)),
			call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0), "after its last attempt had failed\ns: message 1 is not a dead letter"},
		{"dead and acked", made, [][]Entry{published("p", m), call("c", Consume, 1, attempt(1, 3)), call("c", Ack, 1, m)}, letters(rest(0, 1), attempt(1, 3)),
			"was acked and is a dead letter\ncallers were told 1"},
		{"dead too soon", made, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Nack, 1, m)}, letters(rest(0, 1), m), "after 1 of 3 attempts"},
		{"delivered after the purge", made, [][]Entry{published("p", m), call("c", Consume, 1, attempt(1, 3)), call("u", Purge, 1, m), call("c", Consume, 1, m)}, rest(0, 0),
			"after it had been purged"},
		{"delivered after the end", made, [][]Entry{published("p", m), call("for s", Unsubscribe, 0), call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(1, 0),
			"though the subscription had been deleted"},
		{"an effect twice", Made{Topic: "t", Attempts: 3, Receives: true, Effects: true}, [][]Entry{published("p", m), call("h", Handle, 1, m)},
			effects(rest(1, 0), 2), "has 2 effects\nthere are 2 effects"},
		{"an effect of a dead letter", Made{Topic: "t", Attempts: 3, Receives: true, Effects: true}, [][]Entry{published("p", m), call("h", Handle, 0, m)},
			letters(effects(rest(0, 1), 1), m), "has an effect, though\nthere are 1 effects"},
		{"an ack without its effect", Made{Topic: "t", Attempts: 3, Receives: true, Effects: true}, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Ack, 1, m)},
			rest(1, 0), "whose effect is not there\nthere are 0 effects"},
		{"metrics that miscount", made, [][]Entry{published("p", m), call("c", Consume, 1, m), call("c", Ack, 1, m)}, rest(2, 0), "metrics"},
		{"an error that nothing explains", made, [][]Entry{{{Caller: "c", Call: Fault, Text: "deadlock detected"}}}, rest(0, 0), "c: deadlock detected"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := NewAuditor()
			for _, e := range slices.Concat(append([][]Entry{subscribed(test.made)}, test.entries...)...) {
				a.Follow(e)
			}
			a.CutOff()
			a.Account("s", test.rest)
			err := a.Err()
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatalf("nothing was found, want %q", test.want)
			}
			for want := range strings.Lines(test.want) {
				if !strings.Contains(err.Error(), strings.TrimSpace(want)) {
					t.Errorf("found %q, want %q", err, test.want)
				}
			}
			for found := range strings.Lines(err.Error()) {
				if !strings.Contains(test.want, "metrics") && strings.Contains(found, "metrics") {
					t.Errorf("found %q, too", found)
				}
			}
		})
	}
}

// TestAuditorBeforeSubscription has messages that need not, or must not, come to a subscription.
func TestAuditorBeforeSubscription(t *testing.T) {
	t.Parallel()
	a := NewAuditor()
	for _, e := range slices.Concat(published("p", attempt(1, 0)), subscribed(Made{Topic: "t", Attempts: 3})) {
		a.Follow(e)
	}
	a.Account("s", Rest{})
	if err := a.Err(); err != nil {
		t.Errorf("a message is missed that came before: %v", err)
	}
	for _, e := range call("c", Consume, 1, attempt(1, 1)) {
		a.Follow(e)
	}
	if err := a.Err(); err == nil || !strings.Contains(err.Error(), "committed before the subscription was created") {
		t.Errorf("found %v", err)
	}
}

// TestAuditorAcrossSubscriptions has a publish that was cut off and came to one subscription only.
func TestAuditorAcrossSubscriptions(t *testing.T) {
	t.Parallel()
	a := NewAuditor()
	m := attempt(1, 1)
	other := subscribed(Made{Topic: "t", Attempts: 3})
	other[0].Subscription, other[1].Subscription = "other", "other"
	for _, e := range slices.Concat(subscribed(Made{Topic: "t", Attempts: 3}), other, cutShort(published("p", m)), call("c", Consume, 1, m), call("c", Ack, 1, m)) {
		a.Follow(e)
	}
	a.CutOff()
	metrics := fastpubsub.Metrics{Acked: 1}
	a.Account("s", Rest{Before: metrics, After: metrics})
	if err := a.Err(); err == nil || !strings.Contains(err.Error(), "it was delivered to s, and is not here") {
		t.Errorf("found %v", err)
	}
}
