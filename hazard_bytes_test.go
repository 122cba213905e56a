package fastpubsub_test

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// byteHazards come from messages that are so large that a consumer could not hold as many as it asks for.
var byteHazards = []hazard{
	{
		name:        "large messages in the log",
		protections: []protection{{"scan_main", " AND s.filled - s.size < room;  -- protection: bounded bytes in the log", ";"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			return boundedBytes(t, b, db, func() { publishLarge(t, b) })
		},
	},
	{
		name:        "large messages beyond an open transaction",
		protections: []protection{{"scan_main", " AND s.filled - s.size < room;  -- protection: bounded bytes beyond open ones", ";"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			return boundedBytes(t, b, db, func() {
				if _, err := begin(t, db, pgx.TxOptions{}).Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
					t.Fatal(err)
				}
				publishLarge(t, b)
			})
		},
	},
	{
		name:        "large messages of a late transaction",
		protections: []protection{{"scan_late", " AND s.filled - s.size < room;  -- protection: bounded bytes", ";"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			return boundedBytes(t, b, db, func() {
				late := begin(t, db, pgx.TxOptions{})
				for range largeMessages {
					publishTx(t, b, late, "t", largeMessage)
				}
				publish(t, b, "t", numbered(0, 1)...)
				consume(t, b, "s", 1) // passes the late one
				commit(t, late)
			})
		},
	},
	{
		name:        "large messages that are due",
		protections: []protection{{"claim_due", "WHERE d.filled - d.size < room;  -- protection: bounded bytes", ";"}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			return boundedBytes(t, b, db, func() {
				publishLarge(t, b)
				var all []fastpubsub.Delivery
				for msgs := consume(t, b, "s", 100); len(msgs) > 0; msgs = consume(t, b, "s", 100) {
					all = append(all, deliveriesOf(msgs)...)
				}
				if n, err := b.Nack(t.Context(), "s", all, fastpubsub.NackOptions{Immediate: true}); err != nil || n != len(all) {
					t.Fatalf("nacked %d of %d, %v", n, len(all), err)
				}
			})
		},
	},
	{
		name:        "a claim that large messages ended says that it left nothing",
		protections: []protection{{"scan_main", "whole := whole AND coalesce(bytes, 0) < room;", ""}},
		check: func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error {
			smallRoom(t, b, db)
			var ids []string
			for i := range 40 { // others' transactions come between now and then
				ids = append(ids, fmt.Sprintf("s%d", i))
				createSubscription(t, b, ids[i], "t", noFilter)
			}
			for range 4 { // three of them fill the room
				publish(t, b, "t", largeMessage)
			}
			for _, id := range ids {
				if _, err := claimLeavesNothing(t, db, id, 100); err != nil {
					return err
				}
			}
			return nil
		},
	},
}

const (
	largeMessages = 20
	largeBytes    = 100 << 10
	room          = 256 << 10
)

var largeMessage = fastpubsub.NewMessage{Payload: fmt.Appendf(nil, `{"a":"%s"}`, bytes.Repeat([]byte("x"), largeBytes))}

func publishLarge(t testing.TB, b *fastpubsub.Broker) {
	t.Helper()
	for range largeMessages {
		publish(t, b, "t", largeMessage)
	}
}

// smallRoom makes a topic t and a subscription s in which a claim takes fewer bytes than it would.
func smallRoom(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) {
	t.Helper()
	takeOut(t, db, protection{"claim", "64 << 20", strconv.Itoa(room)})
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
}

// boundedBytes makes large messages and consumes them: in each call not many, but all in the end.
func boundedBytes(t testing.TB, b *fastpubsub.Broker, db *storetest.DB, large func()) error {
	t.Helper()
	smallRoom(t, b, db)
	large()
	got := map[fastpubsub.ID]bool{}
	for {
		msgs := consume(t, b, "s", 1000)
		if len(msgs) == 0 {
			break
		}
		taken := 0
		for _, m := range msgs {
			taken += len(m.Payload)
			got[m.ID] = true
		}
		if most := room + len(largeMessage.Payload); taken > most {
			return fmt.Errorf("a call got %d messages of %d bytes, %d at most", len(msgs), taken, most)
		}
	}
	if len(got) != largeMessages {
		return fmt.Errorf("got %d messages, want %d", len(got), largeMessages)
	}
	return nil
}
