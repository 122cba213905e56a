// Package crashtest has what tests share that kill processes: the ledger of what callers were told, an audit of the
// subscription that the ledger is about, and child processes.
package crashtest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fastpubsub/fastpubsub"
)

// A ledger is about this subscription, which [Create] makes.
const (
	Topic        = "t"
	Subscription = "s"
	Attempts     = 3 // delivery attempts that it allows
)

// Create creates the topic and the subscription of a ledger, with deadlines of a few seconds.
func Create(t testing.TB, b *fastpubsub.Broker) {
	t.Helper()
	if _, err := b.CreateTopic(t.Context(), Topic); err != nil {
		t.Fatal(err)
	}
	_, err := b.CreateSubscription(t.Context(), fastpubsub.Subscription{ID: Subscription, TopicID: Topic,
		SubscriptionSettings: fastpubsub.SubscriptionSettings{MaxDeliveryAttempts: Attempts,
			BackoffMin: time.Second, BackoffMax: 2 * time.Second, AckDeadline: 2 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
}

// A Call is what a caller does.
type Call string

// The calls that a ledger knows.
const (
	Publish  Call = "publish"
	Consume  Call = "consume"
	Ack      Call = "ack"
	Nack     Call = "nack"
	Extend   Call = "extend"
	GiveBack Call = "give back"
	Crash    Call = "crash" // of the database, when all calls have ended or were cut off
)

// An Entry of a ledger is the begin of a call, or its end as the caller was told. What happened in a call that never ends
// is not known: it was cut off.
type Entry struct {
	Caller string // makes one call at a time
	Call   Call
	Ended  bool
	// Messages are those that the call is about. Only the end of Publish has their ids, and only the end of Consume
	// has any.
	Messages []Message `json:",omitempty"`
	Count    int       `json:",omitempty"` // what the call returned
}

// Message is a message as a caller knows it.
type Message struct {
	N        int // what its payload has
	ID       fastpubsub.ID
	Attempts int `json:",omitempty"`
}

// Payload is {"n":n}.
func Payload(n int) json.RawMessage { return fmt.Appendf(nil, `{"n":%d}`, n) }

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

// Do does what a caller does, and says so before and after. It returns the error of do, after which the call counts as
// cut off.
func (r Recorder) Do(caller string, call Call, msgs []Message, do func() ([]Message, int, error)) error {
	if err := r(Entry{Caller: caller, Call: call, Messages: msgs}); err != nil {
		return err
	}
	msgs, n, err := do()
	if err != nil {
		return err
	}
	return r(Entry{Caller: caller, Call: call, Ended: true, Messages: msgs, Count: n})
}

// PublishBy publishes n messages with the payloads of from, from+1 and so on, by a function that returns their ids.
func (r Recorder) PublishBy(caller string, from, n int, send func(payloads []json.RawMessage) ([]fastpubsub.ID, error)) error {
	msgs, payloads := make([]Message, n), make([]json.RawMessage, n)
	for i := range msgs {
		msgs[i].N, payloads[i] = from+i, Payload(from+i)
	}
	return r.Do(caller, Publish, slices.Clone(msgs), func() ([]Message, int, error) {
		ids, err := send(payloads)
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
func (r Recorder) Publish(ctx context.Context, b *fastpubsub.Broker, caller string, from, n int) error {
	return r.PublishBy(caller, from, n, func(payloads []json.RawMessage) ([]fastpubsub.ID, error) {
		msgs := make([]fastpubsub.NewMessage, n)
		for i, payload := range payloads {
			msgs[i].Payload = payload
		}
		return b.Publish(ctx, Topic, msgs...)
	})
}

// Consume takes messages; the consumer is the caller.
func (r Recorder) Consume(ctx context.Context, b *fastpubsub.Broker, options fastpubsub.ConsumeOptions) (msgs []Message, err error) {
	err = r.Do(options.Consumer, Consume, nil, func() ([]Message, int, error) {
		got, err := b.Consume(ctx, Subscription, options)
		if err != nil {
			return nil, 0, err
		}
		msgs = make([]Message, len(got))
		for i, m := range got {
			msgs[i] = Received(m.ID, m.Payload, m.DeliveryAttempts)
		}
		return msgs, len(msgs), nil
	})
	return msgs, err
}

// Ack acks messages.
func (r Recorder) Ack(ctx context.Context, b *fastpubsub.Broker, caller string, msgs []Message) error {
	return r.Do(caller, Ack, msgs, func() ([]Message, int, error) {
		n, err := b.Ack(ctx, Subscription, IDs(msgs))
		return msgs, n, err
	})
}
