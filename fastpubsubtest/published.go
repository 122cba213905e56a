package fastpubsubtest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/jsontext"
	"github.com/fastpubsub/fastpubsub/internal/testdb"
	"github.com/fastpubsub/fastpubsub/store"
)

// A Match says which messages of a topic are meant. The zero Match is all of them.
type Match struct {
	// Payload is what a payload must contain: its text, as string or []byte, or a value for [json.Marshal]. Each of its keys must
	// be there with an equal value, in which objects may have further keys, too; arrays must be equal element by element in the
	// same sense. Numbers are compared by value. nil is any payload.
	Payload any
	// Attributes must be there with these values; a message may have others besides.
	Attributes map[string]string
	// Func, if it is set, must return true.
	Func func(Published) bool
	// Count is how many messages must match, no more and no less. Default at least one.
	Count int
}

// Published is a message in the log.
type Published struct {
	ID         fastpubsub.ID
	TopicID    string
	Payload    json.RawMessage   // byte for byte
	Attributes map[string]string // nil if published without
	CreatedAt  time.Time         // by the schema's clock; UTC
}

// RequirePublished returns the committed messages of a topic that match, in the order of the log, and ends the test if they are
// not as many as match.Count says. It then shows what was published instead. Messages whose space [fastpubsub.Broker.CleanupAcked]
// has given back are not seen.
func (k *Kit) RequirePublished(tb testing.TB, topicID string, match Match) []Published {
	tb.Helper()
	return k.require(tb, k.Pool, topicID, match, false)
}

// RequirePublishedTx is RequirePublished as a transaction sees it: what was published in it counts, before it commits or rolls
// back, and what has been committed. The transaction goes on.
func (k *Kit) RequirePublishedTx(tb testing.TB, tx pgx.Tx, topicID string, match Match) []Published {
	tb.Helper()
	return k.require(tb, tx, topicID, match, false)
}

// RequireNotPublished ends the test if a committed message of a topic matches. match.Count must be zero.
func (k *Kit) RequireNotPublished(tb testing.TB, topicID string, match Match) {
	tb.Helper()
	k.require(tb, k.Pool, topicID, match, true)
}

// RequireNotPublishedTx is RequireNotPublished as a transaction sees it.
func (k *Kit) RequireNotPublishedTx(tb testing.TB, tx pgx.Tx, topicID string, match Match) {
	tb.Helper()
	k.require(tb, tx, topicID, match, true)
}

func (k *Kit) require(tb testing.TB, db store.DBTX, topicID string, match Match, none bool) []Published {
	tb.Helper()
	want, err := match.check(none)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	topics, err := k.topics(tb.Context(), db)
	if err != nil {
		tb.Fatalf("what was published could not be read: %v", err)
	}
	all, err := k.published(tb.Context(), db, topicID)
	if err != nil {
		tb.Fatalf("what was published could not be read: %v", err)
	}
	var matching []Published
	reasons := make([]string, len(all)) // why not; empty if it matches
	for i, msg := range all {
		if reasons[i] = match.differs(want, msg); reasons[i] == "" {
			matching = append(matching, msg)
		}
	}
	n := len(matching)
	if _, exists := topics[topicID]; !exists || none && n > 0 || !none && (n == 0 || match.Count > 0 && n != match.Count) {
		_, inTx := db.(pgx.Tx)
		tb.Fatalf("%s", match.report(topicID, want, none, inTx, topics, all, reasons))
	}
	return matching
}

// check returns the payload that is wanted, decoded; nil for any.
func (m *Match) check(none bool) (any, error) {
	if m.Count < 0 {
		return nil, fmt.Errorf("Match.Count must be at least 0, not %d", m.Count)
	}
	if none && m.Count != 0 {
		return nil, fmt.Errorf("Match.Count must be 0 where nothing is to be published, not %d", m.Count)
	}
	var text []byte
	switch p := m.Payload.(type) {
	case nil:
		return nil, nil
	case string:
		text = []byte(p)
	case []byte:
		text = p
	case fastpubsub.NewMessage:
		text = p.Payload
	default:
		var err error
		if text, err = json.Marshal(p); err != nil {
			return nil, fmt.Errorf("Match.Payload: %w", err)
		}
	}
	if err := jsontext.CheckObject(text); err != nil {
		return nil, fmt.Errorf("Match.Payload: %w", err)
	}
	return decode(text)
}

// differs says what about a message does not match; nothing if it does.
func (m *Match) differs(want any, msg Published) string {
	if want != nil {
		got, err := decode(msg.Payload)
		if err != nil {
			return err.Error()
		}
		if reason := difference("", want, got); reason != "" {
			return reason
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m.Attributes)) {
		value, ok := msg.Attributes[key]
		if !ok {
			return fmt.Sprintf("attribute %q is missing", key)
		}
		if value != m.Attributes[key] {
			return fmt.Sprintf("attribute %q is %q, want %q", key, value, m.Attributes[key])
		}
	}
	if m.Func != nil && !m.Func(msg) {
		return "Func returns false"
	}
	return ""
}

const (
	maxShown     = 20  // messages
	maxShownText = 400 // bytes of each
)

// report says what is wrong.
func (m *Match) report(topicID string, want any, none, inTx bool, topics map[string]int, all []Published, reasons []string) string {
	var text strings.Builder
	wanted := "at least 1"
	if none {
		wanted = "none"
	} else if m.Count > 0 {
		wanted = fmt.Sprintf("exactly %d", m.Count)
	}
	matching := 0
	for _, reason := range reasons {
		if reason == "" {
			matching++
		}
	}
	fmt.Fprintf(&text, "published to %q: %d messages match, want %s\n", topicID, matching, wanted)
	if want != nil {
		fmt.Fprintf(&text, "  with payload %s\n", encode(want))
	}
	if len(m.Attributes) > 0 {
		fmt.Fprintf(&text, "  with attributes %s\n", encode(m.Attributes))
	}
	if _, exists := topics[topicID]; !exists {
		fmt.Fprintf(&text, "There is no topic %q.\n", topicID)
	} else if len(all) == 0 {
		text.WriteString("There are no messages in the topic.\n")
	} else {
		fmt.Fprintf(&text, "These are in the topic:\n")
	}
	for i, msg := range all {
		if i == maxShown {
			fmt.Fprintf(&text, "  and %d more\n", len(all)-i)
			break
		}
		reason := reasons[i]
		if reason == "" {
			reason = "matches"
		}
		fmt.Fprintf(&text, "  %v %s", msg.ID, cut(string(msg.Payload)))
		if len(msg.Attributes) > 0 {
			fmt.Fprintf(&text, " attributes %s", cut(encode(msg.Attributes)))
		}
		fmt.Fprintf(&text, "\n    %s\n", reason)
	}
	others := 0
	for _, id := range slices.Sorted(maps.Keys(topics)) {
		if id == topicID {
			continue
		}
		if others == maxShown {
			text.WriteString("  and others\n")
			break
		}
		fmt.Fprintf(&text, "Topic %q has %d.\n", id, topics[id])
		others++
	}
	if inTx {
		text.WriteString("This is what the transaction sees.")
	} else {
		text.WriteString("Only what was committed is seen; RequirePublishedTx sees what a transaction has published so far.")
	}
	return text.String()
}

func cut(s string) string {
	if len(s) <= maxShownText {
		return s
	}
	return strings.ToValidUTF8(s[:maxShownText], "") + "..."
}

// topicsOf counts the messages of each topic.
const topicsOf = `
SELECT t.id, coalesce(sum(m.n), 0)::bigint FROM {schema}.topics t LEFT JOIN {schema}.messages m ON m.topic_num = t.num GROUP BY t.id`

func (k *Kit) topics(ctx context.Context, db store.DBTX) (map[string]int, error) {
	rows, _ := db.Query(ctx, testdb.Fill(topicsOf, k.Schema)) // ForEachRow reports Query's error
	topics := map[string]int{}
	var id string
	var n int
	_, err := pgx.ForEachRow(rows, []any{&id, &n}, func() error {
		topics[id] = n
		return nil
	})
	return topics, err
}

// publishedTo reads the log, in which a row is a batch of messages.
const publishedTo = `
SELECT {schema}.message_id(m.xid, m.base + p.i - 1)::text, t.id, m.created_at, p.payload, m.attributes[p.i::int]::text
FROM {schema}.messages m
JOIN {schema}.topics t ON t.num = m.topic_num
CROSS JOIN LATERAL unnest(m.payloads) WITH ORDINALITY p(payload, i)
WHERE t.id = $1
ORDER BY m.xid, m.base, p.i`

func (k *Kit) published(ctx context.Context, db store.DBTX, topicID string) ([]Published, error) {
	rows, _ := db.Query(ctx, testdb.Fill(publishedTo, k.Schema), topicID) // CollectRows reports Query's error
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Published, error) {
		var msg Published
		var id, payload string
		var attributes *string
		if err := row.Scan(&id, &msg.TopicID, &msg.CreatedAt, &payload, &attributes); err != nil {
			return msg, err
		}
		msg.CreatedAt = msg.CreatedAt.UTC()
		msg.Payload = json.RawMessage(payload)
		if attributes != nil {
			if err := json.Unmarshal([]byte(*attributes), &msg.Attributes); err != nil {
				return msg, err
			}
		}
		var err error
		msg.ID, err = fastpubsub.ParseID(id)
		return msg, err
	})
}
