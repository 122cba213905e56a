// Package crashtest has what programs share that kill processes and see what is left: the ledger of what callers were told, an
// auditor who follows it, consumers that do all that can be done to messages, and child processes.
package crashtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// The ledgers of tests are about this subscription, which [Create] makes.
const (
	Topic        = "t"
	Subscription = "s"
	Attempts     = 3 // delivery attempts that it allows
)

// Create creates the topic and the subscription of a test's ledger, with deadlines of a few seconds.
func Create(t testing.TB, b *fastpubsub.Broker) {
	t.Helper()
	if _, err := b.CreateTopic(t.Context(), Topic); err != nil {
		t.Fatal(err)
	}
	_, err := b.CreateSubscription(t.Context(), Made{Topic: Topic, Attempts: Attempts}.Subscription(Subscription))
	if err != nil {
		t.Fatal(err)
	}
}

// Made says what an auditor has to know about a subscription.
type Made struct {
	Topic    string `json:"topic"`
	Attempts int    `json:"attempts"`        // delivery attempts that it allows
	Kinds    []int  `json:"kinds,omitempty"` // of the messages that its filter lets through; see [Kind]. None is all
	// Receives says that Receive or ReceiveTx has messages of it: then it is not known when each was taken and given back.
	Receives bool `json:"receives,omitempty"`
	// Effects says that who acks one of its messages writes that down in the same transaction.
	Effects bool `json:"effects,omitempty"`
}

// Subscription is what is to be created, with deadlines of a few seconds.
func (m Made) Subscription(id string) fastpubsub.Subscription {
	sub := fastpubsub.Subscription{ID: id, TopicID: m.Topic,
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: m.Attempts,
			BackoffMin: time.Second, BackoffMax: 2 * time.Second, AckDeadline: 2 * time.Second}}
	if len(m.Kinds) > 0 {
		text, err := json.Marshal(map[string][]int{"k": m.Kinds})
		if err == nil {
			err = sub.Filter.UnmarshalJSON(text)
		}
		if err != nil {
			panic(err) // numbers make a filter
		}
	}
	return sub
}

// wants says whether a message is to be delivered. It does not ask the filter, which may be what is wrong.
func (m Made) wants(n int) bool { return len(m.Kinds) == 0 || slices.Contains(m.Kinds, Kind(n)) }

// A Call is what a caller does.
type Call string

// The calls that a ledger knows.
const (
	Publish  Call = "publish"
	Consume  Call = "consume"
	Handle   Call = "handle" // by Receive or ReceiveTx; its end is that of the handler
	Ack      Call = "ack"
	Nack     Call = "nack"
	Bury     Call = "bury" // a nack that makes dead letters at once
	Extend   Call = "extend"
	GiveBack Call = "give back"

	Reprocess Call = "reprocess"
	Purge     Call = "purge"

	Subscribe   Call = "subscribe"   // has Made
	Unsubscribe Call = "unsubscribe" // deletes the subscription, or its topic
	Crash       Call = "crash"       // of the database; it ends when that is there again
	Fault       Call = "fault"       // an error that nothing explains; has Text
)

// An Entry of a ledger is the begin of a call, or its end as the caller was told. What happened in a call that never ends
// is not known: it was cut off.
type Entry struct {
	At     int64  `json:"at,omitempty"` // milliseconds since 1970
	Caller string `json:"by,omitempty"` // makes one call at a time
	Call   Call   `json:"call"`
	Ended  bool   `json:"end,omitempty"`
	Undone bool   `json:"undone,omitempty"` // it has ended, and did nothing: its transaction was rolled back, for example

	Subscription string `json:"sub,omitempty"`
	Topic        string `json:"topic,omitempty"` // of Publish
	Made         *Made  `json:"made,omitempty"`  // of Subscribe
	Text         string `json:"text,omitempty"`  // of Fault
	// Messages are those that the call is about. Only the end of Publish has their ids, and only the end of Consume
	// has any.
	Messages []Message `json:"msgs,omitempty"`
	Count    int       `json:"n,omitempty"` // what the call returned
}

// Message is a message as a caller knows it.
type Message struct {
	N        int           `json:"n"` // what its payload has
	ID       fastpubsub.ID `json:"id,omitzero"`
	Attempts int           `json:"a,omitempty"`
}

// Kind is what filters go by, 0 to 9.
func Kind(n int) int { return n % 10 }

// Payload is {"n":n,"k":kind} and some padding: mostly some 100 bytes, now and then more than fits into a page.
func Payload(n int) json.RawMessage {
	size := n * 7919 % 250
	switch {
	case n%1000 == 999:
		size *= 250
	case n%50 == 49:
		size *= 20
	}
	return fmt.Appendf(nil, `{"n":%d,"k":%d,"pad":"%s"}`, n, Kind(n), strings.Repeat("0123456789abcdef", size/16))
}

// Received reads the number of a message. A payload that is not as it was published has -1, which never was.
func Received(id fastpubsub.ID, payload []byte, attempts int) Message {
	var p struct{ N int }
	if err := json.Unmarshal(payload, &p); err != nil || string(payload) != string(Payload(p.N)) {
		p.N = -1
	}
	return Message{p.N, id, attempts}
}

// IDs are the ids of messages.
func IDs(msgs []Message) []fastpubsub.ID {
	ids := make([]fastpubsub.ID, len(msgs))
	for i, m := range msgs {
		ids[i] = m.ID
	}
	return ids
}

// A Recorder adds an entry to a ledger. What was added before comes first there, whoever added it.
type Recorder func(Entry) error

// Memory is the ledger of one process.
type Memory struct {
	mu      sync.Mutex // protects entries
	entries []Entry
}

// Add is a [Recorder].
func (m *Memory) Add(e Entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = append(m.entries, e)
	return nil
}

// Entries returns what was added so far.
func (m *Memory) Entries() []Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.entries)
}

// undoneError is what a call returns that certainly has done nothing.
type undoneError struct{ err error }

func (e *undoneError) Error() string { return e.err.Error() }
func (e *undoneError) Unwrap() error { return e.err }

// Undone marks the error of a call that certainly has done nothing. Of nil it is nil.
func Undone(err error) error {
	if err == nil {
		return nil
	}
	return &undoneError{err}
}

// Do does what a caller does, and says so before and after, with an entry like e. It returns the error of do, after which the
// call counts as cut off, unless it is one of [Undone].
func (r Recorder) Do(e Entry, do func() ([]Message, int, error)) error {
	if err := r(e); err != nil {
		return err
	}
	e.Made = nil
	msgs, n, err := do()
	if _, ok := errors.AsType[*undoneError](err); ok {
		e.Ended, e.Undone = true, true
		return errors.Join(err, r(e))
	}
	if err != nil {
		return err
	}
	e.Ended, e.Messages, e.Count = true, msgs, n
	return r(e)
}

// PublishBy publishes n messages with the payloads of from, from+1 and so on, by a function that returns their ids.
func (r Recorder) PublishBy(topic, caller string, from, n int, send func(msgs []fastpubsub.NewMessage) ([]fastpubsub.ID, error)) error {
	msgs, published := make([]Message, n), make([]fastpubsub.NewMessage, n)
	for i := range msgs {
		msgs[i].N, published[i].Payload = from+i, Payload(from+i)
	}
	return r.Do(Entry{Caller: caller, Call: Publish, Topic: topic, Messages: slices.Clone(msgs)}, func() ([]Message, int, error) {
		ids, err := send(published)
		if err == nil && len(ids) != n {
			err = fmt.Errorf("%d ids for %d messages", len(ids), n)
		}
		if err != nil {
			return nil, 0, err
		}
		for i, id := range ids {
			msgs[i].ID = id
		}
		return msgs, n, nil
	})
}

// Publish publishes n messages with the payloads of from, from+1 and so on.
func (r Recorder) Publish(ctx context.Context, b *fastpubsub.Broker, topic, caller string, from, n int) error {
	return r.PublishBy(topic, caller, from, n, func(msgs []fastpubsub.NewMessage) ([]fastpubsub.ID, error) {
		ids, err := b.Publish(ctx, topic, msgs...)
		return ids, refused(err)
	})
}

// refused marks the errors of calls that did nothing.
func refused(err error) error {
	if errors.Is(err, fastpubsub.ErrNotFound) || errors.Is(err, fastpubsub.ErrInvalid) || errors.Is(err, fastpubsub.ErrBusy) {
		return Undone(err)
	}
	return err
}

// Consume takes messages; the consumer is the caller.
func (r Recorder) Consume(ctx context.Context, b *fastpubsub.Broker, sub string, options fastpubsub.ConsumeOptions) (msgs []Message, err error) {
	err = r.Do(Entry{Caller: options.Consumer, Call: Consume, Subscription: sub}, func() ([]Message, int, error) {
		got, err := b.Consume(ctx, sub, options)
		if err != nil {
			return nil, 0, refused(err)
		}
		msgs = make([]Message, len(got))
		for i, m := range got {
			msgs[i] = Received(m.ID, m.Payload, m.DeliveryAttempts)
		}
		return msgs, len(msgs), nil
	})
	return msgs, err
}

// Change is a call about messages that were consumed; ack or nack, for example.
func (r Recorder) Change(call Call, sub, caller string, msgs []Message, do func() (int, error)) error {
	return r.Do(Entry{Caller: caller, Call: call, Subscription: sub, Messages: withoutIDs(msgs)}, func() ([]Message, int, error) {
		n, err := do()
		return withoutIDs(msgs), n, refused(err)
	})
}

// withoutIDs makes a ledger smaller: by the number a message is known well enough.
func withoutIDs(msgs []Message) []Message {
	all := make([]Message, len(msgs))
	for i, m := range msgs {
		all[i] = Message{N: m.N, Attempts: m.Attempts}
	}
	return all
}

// Ack acks messages.
func (r Recorder) Ack(ctx context.Context, b *fastpubsub.Broker, sub, caller string, msgs []Message) error {
	return r.Change(Ack, sub, caller, msgs, func() (int, error) { return b.Ack(ctx, sub, IDs(msgs)) })
}
