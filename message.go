package fastpubsub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub/internal/errtext"
	"github.com/fastpubsub/fastpubsub/internal/idrule"
	"github.com/fastpubsub/fastpubsub/internal/jsontext"
	"github.com/fastpubsub/fastpubsub/store"
)

// Limits of messages, in one call.
const (
	maxPublishMessages = 10_000
	maxPublishBytes    = 64 << 20
	maxPayloadBytes    = 16 << 20
	maxAttributes      = 64    // of a message
	maxAttributeBytes  = 4_096 // of a key or a value
	maxConsume         = 1_000
	maxConsumerLength  = 128
	maxAckIDs          = 10_000
)

// ID identifies a message: the same in every subscription, from publish to the last redelivery. Ids sort in the order
// of the log. An ID is a UUID of version 8.
type ID [16]byte

// The id of a message is its position in the log, (xid, seq), in the free bits of a UUID of version 8 (RFC 9562, section
// 5.8): xid has the 60 before the variant, seq the 62 behind it.
const (
	maxXid = 1<<60 - 1
	maxSeq = 1<<62 - 1
)

func newID(xid, seq int64) ID {
	hi := uint64(xid)>>12<<16 | 0x8000 | uint64(xid)&0xfff
	lo := 1<<63 | uint64(seq)
	var id ID
	for i := range 8 {
		id[i] = byte(hi >> (56 - 8*i))
		id[8+i] = byte(lo >> (56 - 8*i))
	}
	return id
}

// position is the reverse of newID; ok is false for a UUID that is no message's.
func (id ID) position() (xid, seq int64, ok bool) {
	var hi, lo uint64
	for i := range 8 {
		hi = hi<<8 | uint64(id[i])
		lo = lo<<8 | uint64(id[8+i])
	}
	if hi>>12&0xf != 8 || lo>>62 != 2 {
		return 0, 0, false
	}
	return int64(hi>>16<<12 | hi&0xfff), int64(lo & maxSeq), true
}

// ParseID reads an id from the text form of a UUID. It returns an InvalidError for other text.
func ParseID(s string) (ID, error) {
	u, err := uuid.Parse(s)
	if err != nil {
		return ID{}, &InvalidError{[]Problem{{"id", "uuid_parsing", "must be a UUID"}}}
	}
	return ID(u), nil
}

// String is the UUID's usual form, in lower case.
func (id ID) String() string { return uuid.UUID(id).String() }

// MarshalText implements [encoding.TextMarshaler].
func (id ID) MarshalText() ([]byte, error) { return uuid.UUID(id).MarshalText() }

// UnmarshalText implements [encoding.TextUnmarshaler], as ParseID.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	*id = parsed
	return err
}

// A NewMessage is what is published.
type NewMessage struct {
	// Payload is a JSON object of at most 16 MiB. It is stored and delivered byte for byte. Refused are, besides what is
	// not JSON: \u0000 and lone surrogates, nesting deeper than 128, numbers of more than 1,000 characters or with an
	// exponent beyond ±10,000.
	Payload json.RawMessage
	// Attributes are delivered beside the payload; filters do not look at them. At most 64, with keys and values of at
	// most 4,096 bytes of UTF-8 without NUL.
	Attributes map[string]string

	err error // of JSON
}

// JSON is a NewMessage with v encoded by [json.Marshal]. If that fails, publishing the message returns the error.
func JSON(v any) NewMessage {
	payload, err := json.Marshal(v)
	return NewMessage{Payload: payload, err: err}
}

// Check returns why Publish would refuse the message, whatever topic it is for: what [JSON] could not encode, or an InvalidError
// with the fields "payload" and "attributes". It is nil for a message that can be published.
func (m NewMessage) Check() error {
	if m.err != nil {
		return m.err
	}
	var p problems
	m.check(&p, func(name string) string { return name })
	return p.err()
}

func (m *NewMessage) check(p *problems, field func(name string) string) {
	if len(m.Payload) > maxPayloadBytes {
		p.add(field("payload"), "too_long", "must have at most %d bytes, not %d", maxPayloadBytes, len(m.Payload))
	} else if err := jsontext.CheckObject(m.Payload); err != nil {
		p.add(field("payload"), payloadProblem(err), "%v", err)
	}
	if len(m.Attributes) > 0 {
		checkAttributes(p, field("attributes"), m.Attributes)
	}
}

// Publish publishes messages to a topic, all or none, and returns their ids in the same order. Afterwards they are
// durable, and every subscription of the topic gets them; no order between concurrent calls is promised. It takes 1 to
// 10,000 messages of 64 MiB in all.
//
// Calls of up to 64 messages and 8 KiB that come while another for the same topic is on its way share a statement and its
// commit. A call waits for that no longer than the other takes, at most 50 ms, and a lone one not at all. A shared
// statement has the values of one call's ctx: hooks of the pool and tracers see those. Where they matter use PublishTx.
//
// When ctx is cancelled, or the connection breaks, the messages may have been published all the same.
//
// It returns ErrNotFound if there is no such topic and an InvalidError that names each message which was refused.
func (b *Broker) Publish(ctx context.Context, topicID string, msgs ...NewMessage) ([]ID, error) {
	ids, err := b.publish(ctx, b.pool, topicID, msgs, b.group.publish)
	if err == nil {
		b.published(topicID, len(ids))
	}
	return ids, err
}

// PublishTx is Publish in the caller's transaction, of any isolation level: the messages are published when it commits,
// and never if it rolls back. The ids are known at once. It raises the transaction's synchronous_commit from off to
// local, since a commit that a crash forgets would have its ids given out again.
//
// This Broker does not see the commit. While it runs [Broker.Run] it asks the database whether the transaction has ended, every
// few milliseconds at first, and then wakes consumers; [Broker.InTx] does so at once; otherwise they find it by polling.
//
// It returns what Publish does. Neither an InvalidError nor ErrNotFound ends the transaction.
func (b *Broker) PublishTx(ctx context.Context, tx pgx.Tx, topicID string, msgs ...NewMessage) ([]ID, error) {
	ids, err := b.publish(ctx, tx, topicID, msgs, func(ctx context.Context, topicID string, payloads []string, attributes []*string) ([]ID, error) {
		return b.send(ctx, tx, topicID, payloads, attributes)
	})
	if err == nil {
		b.publishedIn(tx, topicID, ids)
	}
	return ids, err
}

type sendFunc func(ctx context.Context, topicID string, payloads []string, attributes []*string) ([]ID, error)

func (b *Broker) publish(ctx context.Context, db store.DBTX, topicID string, msgs []NewMessage, send sendFunc) ([]ID, error) {
	if b.hooks.Hooks == nil {
		return b.publishWith(ctx, db, topicID, msgs, nil, send)
	}
	ctx, op := b.hooks.start(ctx, Operation{Kind: OpPublish, TopicID: topicID, InTx: isTx(db), New: slices.Clone(msgs)})
	ids, err := b.publishWith(ctx, db, topicID, msgs, op.Attributes, send)
	op.IDs = ids
	b.hooks.end(ctx, op, len(ids), err)
	return ids, err
}

// publishWith publishes messages with attributes of the hooks.
func (b *Broker) publishWith(ctx context.Context, db store.DBTX, topicID string, msgs []NewMessage, hooked map[string]string,
	send sendFunc) ([]ID, error) {
	payloads, attributes, err := encode(msgs, hooked)
	if err != nil {
		return nil, fmt.Errorf("publish to %q: %w", topicID, err)
	}
	if !idrule.Matches(topicID) {
		return nil, fmt.Errorf("publish to %q: %w", topicID, ErrNotFound)
	}
	if err := b.ready(ctx, db); err != nil {
		return nil, err
	}
	ids, err := send(ctx, topicID, payloads, attributes)
	if err != nil {
		return nil, fmt.Errorf("publish to %q: %w", topicID, err)
	}
	return ids, nil
}

// send writes messages to the log and returns their ids.
func (b *Broker) send(ctx context.Context, db store.DBTX, topicID string, payloads []string, attributes []*string) ([]ID, error) {
	p, err := b.store.Publish(ctx, db, topicID, payloads, attributes)
	if err != nil {
		return nil, err
	}
	ids := make([]ID, len(payloads))
	for i := range ids {
		ids[i] = newID(p.Xid, p.Bases[i/p.PerBatch]+int64(i%p.PerBatch))
	}
	return ids, nil
}

// encode checks messages and gives them the form in which they are stored. attributes is nil when no message has any.
func encode(msgs []NewMessage, hooked map[string]string) (payloads []string, attributes []*string, err error) {
	var p problems
	checkRange(&p, "messages", len(msgs), 1, maxPublishMessages)
	if err := p.err(); err != nil {
		return nil, nil, err
	}
	payloads = make([]string, len(msgs))
	hooked, hookedText, err := encodeHooked(hooked)
	if err != nil {
		return nil, nil, err
	}
	if hookedText != nil {
		attributes = make([]*string, len(msgs))
	}
	total := 0
	for i, msg := range msgs {
		if msg.err != nil {
			return nil, nil, fmt.Errorf("message %d: %w", i, msg.err)
		}
		msg.check(&p, func(name string) string { return "messages." + strconv.Itoa(i) + "." + name })
		payloads[i] = string(msg.Payload)
		total += len(msg.Payload)
		if len(msg.Attributes) > 0 {
			if attributes == nil {
				attributes = make([]*string, len(msgs))
			}
			all := withAttributes(msg.Attributes, hooked)
			text, err := json.Marshal(all)
			if err != nil {
				return nil, nil, fmt.Errorf("message %d: attributes: %w", i, err)
			}
			s := string(text)
			attributes[i] = &s
			total += len(s)
			if len(all) > len(msg.Attributes) { // the limit is for what the caller publishes
				total -= len(*hookedText) - len(",")
			}
		} else if hookedText != nil {
			attributes[i] = hookedText
		}
	}
	if total > maxPublishBytes {
		p.add("messages", "too_long", "must have at most %d bytes in all, not %d", maxPublishBytes, total)
	}
	return payloads, attributes, p.err()
}

// payloadProblem is the type of problem for text that jsontext refused.
func payloadProblem(err error) string {
	var e *jsontext.Error
	if errors.As(err, &e) && e.Kind == jsontext.NotObject {
		return "dict_type"
	}
	return "json_invalid"
}

// encodeHooked returns attributes of the hooks, and their text for messages that have no others; nil if there are none, or they
// break the rules.
func encodeHooked(hooked map[string]string) (map[string]string, *string, error) {
	if len(hooked) == 0 {
		return nil, nil, nil
	}
	var p problems
	if checkAttributes(&p, "attributes", hooked); len(p) > 0 {
		return nil, nil, nil
	}
	text, err := json.Marshal(hooked)
	if err != nil {
		return nil, nil, fmt.Errorf("attributes of hooks: %w", err)
	}
	s := string(text)
	return hooked, &s, nil
}

func checkAttributes(p *problems, field string, attributes map[string]string) {
	if len(attributes) > maxAttributes {
		p.add(field, "too_long", "must have at most %d attributes, not %d", maxAttributes, len(attributes))
	}
	for key, value := range attributes {
		for _, s := range []string{key, value} {
			if len(s) > maxAttributeBytes {
				p.add(field, "string_too_long", "keys and values must have at most %d bytes, not %d", maxAttributeBytes, len(s))
			} else if !utf8.ValidString(s) || slices.Contains([]byte(s), 0) {
				p.add(field, "value_error", "keys and values must be UTF-8 without NUL")
			}
		}
	}
}

// A Delivery is one handing-out of a message to a consumer.
type Delivery struct {
	ID ID
	// DeliveryAttempts is how often the message was delivered by this subscription, this time included; deliveries that were
	// given back do not count. Where a Delivery is given to Nack or Extend, 0 stands for whichever is the current one.
	DeliveryAttempts int
}

// A Message is what a consumer gets.
type Message struct {
	Delivery
	SubscriptionID string
	Payload        json.RawMessage   // as it was published, byte for byte
	Attributes     map[string]string // nil if published without
	CreatedAt      time.Time         // when it was published, by the database's clock; UTC
}

// ConsumeOptions say what to take.
type ConsumeOptions struct {
	// Consumer names who takes the messages, for people who look. 1 to 128 characters; required.
	Consumer string
	// Max is how many messages to take at most, 1 to 1,000. Default 10. Of messages with more than 64 MiB of payloads and
	// attributes fewer come: the rest comes with the next call.
	Max int
	// Wait is how long to wait for the first message. Default none.
	Wait time.Duration
	// AckDeadline is how long the messages may be kept before they are delivered again, in whole seconds from 1 second to
	// 12 hours. Default the subscription's.
	AckDeadline time.Duration
	// Single gives each message a lease of its own. For consumers that ack inside their own transactions: acks of
	// messages that share a lease wait for each other's transactions. It costs a row a message.
	Single bool
}

func (o *ConsumeOptions) check() (store.Claim, error) {
	var p problems
	switch n := utf8.RuneCountInString(o.Consumer); {
	case n == 0:
		p.add("consumer_id", "string_too_short", "must have at least 1 character")
	case n > maxConsumerLength:
		p.add("consumer_id", "string_too_long", "must have at most %d characters, not %d", maxConsumerLength, n)
	case !utf8.ValidString(o.Consumer) || slices.Contains([]byte(o.Consumer), 0):
		p.add("consumer_id", "value_error", "must be UTF-8 without NUL")
	}
	if o.Max == 0 {
		o.Max = 10
	}
	checkRange(&p, "batch_size", o.Max, 1, maxConsume)
	if o.Wait < 0 {
		p.add("wait_seconds", "greater_than_equal", "must be at least 0, not %v", o.Wait)
	}
	claim := store.Claim{Consumer: o.Consumer, Max: o.Max, Single: o.Single}
	if o.AckDeadline != 0 {
		checkSeconds(&p, "ack_deadline_seconds", o.AckDeadline, maxAckDeadlineSeconds)
		n := seconds(o.AckDeadline)
		claim.AckDeadlineSeconds = &n
	}
	return claim, p.err()
}

const (
	busyPause = 100 * time.Millisecond
	// patience is for a Consume that does not wait: how long it goes on behind a filter that matches nothing, or for
	// the lock of a busy subscription.
	patience = time.Second
	// shortWait is one that may be over before anybody has looked on behalf of those who wait.
	shortWait = time.Second
)

// Consume takes messages from a subscription and counts one delivery attempt for each: first those that are due again, then
// the log, each in the order of the log. It waits up to options.Wait for the first; none is an empty slice and no error. It
// holds no connection while it waits, and is woken when there is something: see [Broker.Run]. Beneath that one goroutine polls
// for all who wait in this process; it ends when nobody waits.
//
// Each message stays with the consumer until it is acked, nacked, or its ack deadline passes; then it is delivered again, so
// handlers must tolerate seeing a message twice. A message whose attempts are used up becomes a dead letter instead. Ack
// deadlines are judged by whoever consumes next, and by CleanupStuck. When ctx ends while the statement runs, Consume waits
// for that, a second at most, and returns the messages that it took. If it takes longer, or the connection breaks, messages may
// have been taken though none are returned; they too come back after the ack deadline.
//
// A subscription's filter is evaluated here, ten thousand messages at a time. A Consume that does not wait gives up after
// a second of finding nothing that matches; the next goes on from there.
//
// It returns ErrNotFound if there is no such subscription, ErrBusy if other consumers held it all the time, and an
// InvalidError for options out of range.
func (b *Broker) Consume(ctx context.Context, subscriptionID string, options ConsumeOptions) ([]Message, error) {
	claim, err := options.check()
	if err != nil {
		return nil, fmt.Errorf("consume from %q: %w", subscriptionID, err)
	}
	if !idrule.Matches(subscriptionID) {
		return nil, fmt.Errorf("consume from %q: %w", subscriptionID, ErrNotFound)
	}
	claim.SubscriptionID = subscriptionID
	if err := b.ready(ctx, b.pool); err != nil {
		return nil, err
	}
	return b.take(ctx, claim, options.Wait)
}

// take consumes what was checked.
func (b *Broker) take(ctx context.Context, claim store.Claim, wait time.Duration) ([]Message, error) {
	subscriptionID := claim.SubscriptionID
	var m *member
	if wait > 0 {
		m = b.waits.join(subscriptionID)
		defer m.leave()
	}
	start := time.Now()
	for {
		msgs, left, err := b.claim(ctx, claim)
		more := left == store.LeftMore
		busy := errors.Is(err, ErrBusy)
		if err != nil && !(busy && time.Since(start) < max(wait, patience)) {
			return nil, fmt.Errorf("consume from %q: %w", subscriptionID, err)
		}
		if m != nil && err == nil && !more {
			m.claimed(len(msgs), claim.Max)
		}
		if len(msgs) > 0 {
			return msgs, nil
		}
		if more && time.Since(start) < max(wait, patience) {
			continue
		}
		rest := wait - time.Since(start)
		switch {
		case busy:
			err = sleep(ctx, busyPause/2+rand.N(busyPause))
		case rest <= 0:
			return nil, nil
		default:
			var woken bool
			woken, err = m.wait(ctx, claim.Max, rest)
			if !woken && err == nil && wait > shortWait {
				return nil, nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("consume from %q: %w", subscriptionID, err)
		}
	}
}

// claim takes messages once.
func (b *Broker) claim(ctx context.Context, claim store.Claim) (msgs []Message, left store.Left, err error) {
	ctx, op := b.hooks.start(ctx, Operation{Kind: OpConsume, SubscriptionID: claim.SubscriptionID})
	msgs, left, err = b.claimOnce(ctx, claim)
	if op != nil {
		op.Messages = msgs
		b.hooks.end(ctx, op, len(msgs), err)
	}
	return msgs, left, err
}

func (b *Broker) claimOnce(ctx context.Context, claim store.Claim) ([]Message, store.Left, error) {
	batches, left, err := b.claimWhole(ctx, claim)
	if err != nil || len(batches) == 0 {
		return nil, left, err
	}
	msgs, err := decode(claim.SubscriptionID, batches)
	return msgs, left, err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func decode(subscriptionID string, batches []store.Claimed) ([]Message, error) {
	n := 0
	for _, b := range batches {
		n += len(b.Payloads)
	}
	msgs := make([]Message, 0, n)
	for _, b := range batches {
		want := int64(0)
		for j := range b.Los {
			want += b.His[j] - b.Los[j]
		}
		if want != int64(len(b.Payloads)) || b.Attributes != nil && want != int64(len(b.Attributes)) {
			return nil, fmt.Errorf("record batch of %v: %d payloads and %d attributes for %d messages",
				newID(b.Xid, b.Los[0]), len(b.Payloads), len(b.Attributes), want)
		}
		i := 0
		for j := range b.Los {
			for seq := b.Los[j]; seq < b.His[j]; seq++ {
				msg := Message{
					Delivery:       Delivery{newID(b.Xid, seq), b.Attempts},
					SubscriptionID: subscriptionID,
					Payload:        json.RawMessage(b.Payloads[i]),
					CreatedAt:      b.CreatedAt.UTC(),
				}
				if b.Attributes != nil {
					if err := msg.decodeAttributes(b.Attributes[i]); err != nil {
						return nil, err
					}
				}
				msgs = append(msgs, msg)
				i++
			}
		}
	}
	return msgs, nil
}

func (m *Message) decodeAttributes(text *string) error {
	if text == nil {
		return nil
	}
	if err := json.Unmarshal([]byte(*text), &m.Attributes); err != nil {
		return fmt.Errorf("attributes of message %v: %w", m.ID, err)
	}
	return nil
}

// Ack marks messages as done; they are not delivered again. It returns how many of them this call acked: messages that
// are not with a consumer, of another subscription or acked before are passed over. An ack that comes after the ack deadline
// counts while the message is not a dead letter; it goes by the id, so it also acks a delivery to somebody else. Its commit is
// durable, as far as the session's synchronous_commit has it. It takes up to 10,000 ids.
//
// When ctx is cancelled, the messages may have been acked all the same.
//
// It returns ErrNotFound if there is no such subscription and an InvalidError for too many ids.
func (b *Broker) Ack(ctx context.Context, subscriptionID string, ids []ID) (int, error) {
	return b.ack(ctx, b.pool, subscriptionID, ids, b.store.Ack)
}

// AckTx is Ack in the caller's transaction, of any isolation level: the messages are acked when it commits, and stay with
// their consumer if it rolls back. A message is acked by one transaction only, so a count as high as the number of ids
// says that nobody else has done, or will do, what this transaction does about them.
//
// Until the transaction ends, acks and nacks of messages with the same lease wait for it; see [ConsumeOptions.Single].
// Consumers do not. Under REPEATABLE READ and SERIALIZABLE they fail then with a serialization error (SQLSTATE 40001), as
// updates do. A transaction with several calls for the same subscription can deadlock with another such, as with updates.
func (b *Broker) AckTx(ctx context.Context, tx pgx.Tx, subscriptionID string, ids []ID) (int, error) {
	return b.ack(ctx, tx, subscriptionID, ids, b.store.AckTx)
}

func (b *Broker) ack(ctx context.Context, db store.DBTX, subscriptionID string, ids []ID,
	run func(context.Context, store.DBTX, string, []store.Range) (int, error)) (int, error) {
	return b.change(ctx, db, Operation{Kind: OpAck, SubscriptionID: subscriptionID}, deliveriesOf(ids), run)
}

// NackOptions say what becomes of messages that failed. The zero NackOptions wait for the subscription's backoff.
type NackOptions struct {
	// Delay is how long the messages wait before they are delivered again, in whole seconds, up to 366 days. Default the
	// subscription's backoff.
	Delay time.Duration
	// Immediate delivers them again without any wait; Delay must be zero.
	Immediate bool
	// Error says what failed, for people who look at dead letters. It is kept up to 8,192 bytes; what is not UTF-8, and NUL,
	// is replaced. Default what an earlier failure said.
	Error string
	// DeadLetter makes them dead letters at once, whatever attempts are left: nobody need try again. There is no delay then.
	DeadLetter bool
	// Uncounted does not count the delivery as an attempt. They are delivered again after Delay, or at once.
	Uncounted bool
}

const maxDelaySeconds = 366 * 24 * 60 * 60

// Nack gives messages back that failed. Each waits, for the subscription's backoff or as options say, and is then delivered
// again, or it becomes a dead letter if it was delivered as often as the subscription allows. It returns how many: a message
// is passed over unless it is with a consumer, by the delivery that is given, and its ack deadline has not passed. It takes
// up to 10,000 deliveries. [Message] has a Delivery.
//
// When ctx is cancelled, the messages may have been given back all the same.
//
// It returns ErrNotFound if there is no such subscription and an InvalidError for options out of range.
func (b *Broker) Nack(ctx context.Context, subscriptionID string, deliveries []Delivery, options NackOptions) (int, error) {
	n, err := b.nack(ctx, b.pool, subscriptionID, deliveries, options)
	if n > 0 {
		b.changed(subscriptionID)
	}
	return n, err
}

// NackTx is Nack in the caller's transaction, of any isolation level, with what AckTx says about those who wait for it. The
// messages wait from the time of the call on.
func (b *Broker) NackTx(ctx context.Context, tx pgx.Tx, subscriptionID string, deliveries []Delivery, options NackOptions) (int, error) {
	return b.nack(ctx, tx, subscriptionID, deliveries, options)
}

func (b *Broker) nack(ctx context.Context, db store.DBTX, subscriptionID string, deliveries []Delivery, options NackOptions) (int, error) {
	n, err := options.check()
	if err != nil {
		return 0, fmt.Errorf("nack on %q: %w", subscriptionID, err)
	}
	return b.change(ctx, db, Operation{Kind: OpNack, SubscriptionID: subscriptionID, dies: options.DeadLetter}, deliveries,
		func(ctx context.Context, db store.DBTX, subscriptionID string, ranges []store.Range) (int, error) {
			n.Ranges = ranges
			return b.store.Nack(ctx, db, subscriptionID, n)
		})
}

// check returns options in the form in which the engine takes them.
func (o *NackOptions) check() (store.Nack, error) {
	var p problems
	n := store.Nack{Error: errorText(o.Error), Act: store.Retry}
	if o.Immediate && o.Delay != 0 {
		p.add("delay_seconds", "value_error", "must be 0 when the delivery is to be immediate, not %v", o.Delay)
	} else if o.Immediate || o.Delay != 0 {
		if !o.Immediate {
			checkSeconds(&p, "delay_seconds", o.Delay, maxDelaySeconds)
		}
		delay := seconds(o.Delay)
		n.DelaySeconds = &delay
	}
	switch {
	case o.DeadLetter && (n.DelaySeconds != nil || o.Uncounted):
		p.add("dead_letter", "value_error", "goes with neither a delay nor an attempt that is not counted")
	case o.DeadLetter:
		n.Act = store.Bury
	case o.Uncounted:
		n.Act = store.GiveBack
	}
	return n, p.err()
}

// errorText is an error in the form in which it is stored; nil for none.
func errorText(s string) *string {
	if s == "" {
		return nil
	}
	s = errtext.Keep(s)
	return &s
}

// Extend gives messages another ack deadline: ackDeadline from now, in whole seconds up to 12 hours. Zero gives them back: they
// are delivered again at once, and the delivery does not count as an attempt. It returns how many, with what Nack says about
// those that are passed over, about limits, and about a ctx that is cancelled. A message that was extended costs a row of
// its own.
//
// It returns ErrNotFound if there is no such subscription and an InvalidError for a deadline out of range.
func (b *Broker) Extend(ctx context.Context, subscriptionID string, deliveries []Delivery, ackDeadline time.Duration) (int, error) {
	var p problems
	if ackDeadline != 0 {
		checkSeconds(&p, "ack_deadline_seconds", ackDeadline, maxAckDeadlineSeconds)
	}
	if err := p.err(); err != nil {
		return 0, fmt.Errorf("extend on %q: %w", subscriptionID, err)
	}
	n, err := b.change(ctx, b.pool, Operation{Kind: OpExtend, SubscriptionID: subscriptionID}, deliveries,
		func(ctx context.Context, db store.DBTX, subscriptionID string, ranges []store.Range) (int, error) {
			return b.store.Extend(ctx, db, subscriptionID, ranges, seconds(ackDeadline))
		})
	if n > 0 && ackDeadline == 0 {
		b.changed(subscriptionID)
	}
	return n, err
}

// change checks what all operations on messages have in common, and runs one of them.
func (b *Broker) change(ctx context.Context, db store.DBTX, what Operation, deliveries []Delivery,
	run func(context.Context, store.DBTX, string, []store.Range) (int, error)) (int, error) {
	failed := func(err error) error { return fmt.Errorf("%s on %q: %w", what.Kind, what.SubscriptionID, err) }
	var p problems
	checkRange(&p, "ids", len(deliveries), 0, maxAckIDs)
	if err := p.err(); err != nil {
		return 0, failed(err)
	}
	if !idrule.Matches(what.SubscriptionID) {
		return 0, failed(ErrNotFound)
	}
	if err := b.ready(ctx, db); err != nil {
		return 0, err
	}
	if b.hooks.Hooks != nil {
		what.InTx, what.Deliveries = isTx(db), slices.Clone(deliveries) // the caller's own could not be on its stack
	}
	ctx, op := b.hooks.start(ctx, what)
	n, err := run(ctx, db, what.SubscriptionID, ranges(deliveries))
	if err != nil {
		n, err = 0, failed(err)
	}
	b.hooks.end(ctx, op, n, err)
	return n, err
}

func deliveriesOf(ids []ID) []Delivery {
	all := make([]Delivery, len(ids))
	for i, id := range ids {
		all[i].ID = id
	}
	return all
}

// ranges gives deliveries the form in which the engine takes them: ascending stretches. What is no message's id is left out.
func ranges(deliveries []Delivery) []store.Range {
	all := make([]store.Range, 0, len(deliveries))
	ascending := true
	for _, d := range deliveries {
		xid, seq, ok := d.ID.position()
		if !ok {
			continue
		}
		attempt := d.DeliveryAttempts
		if attempt < 0 || attempt > math.MaxInt32 { // no delivery has such a number
			continue
		}
		r := store.Range{Xid: xid, Lo: seq, Hi: seq + 1, Attempt: attempt}
		if n := len(all); n > 0 {
			if last := &all[n-1]; last.Xid == xid && last.Hi == seq && last.Attempt == attempt {
				last.Hi++
				continue
			}
			ascending = ascending && compareRanges(all[n-1], r) < 0
		}
		all = append(all, r)
	}
	if !ascending {
		slices.SortFunc(all, compareRanges)
	}
	return all
}

func compareRanges(a, b store.Range) int {
	return cmp.Or(cmp.Compare(a.Xid, b.Xid), cmp.Compare(a.Lo, b.Lo))
}
