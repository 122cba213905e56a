package fastpubsub_test

import (
	"slices"
	"testing"

	"github.com/fastpubsub/fastpubsub"
)

// TestCallsKeepToRecordBatches looks at how many messages come in large calls after redeliveries: they get back to the bounds of record
// batches, since a call that begins and ends inside costs more.
func TestCallsKeepToRecordBatches(t *testing.T) {
	t.Parallel()
	b, db := newBroker(t)
	createTopic(t, b, "t")
	createSubscription(t, b, "s", "t", noFilter)
	for i := range 3 {
		publish(t, b, "t", numbered(100*i, 100)...)
	}
	waitForOpen(t, db)
	var got []int
	for i := range 5 {
		msgs := consume(t, b, "s", 100)
		got = append(got, len(msgs))
		if i > 0 {
			continue
		}
		if n, err := b.Nack(t.Context(), "s", deliveriesOf(msgs[:10]), fastpubsub.NackOptions{Immediate: true}); err != nil || n != 10 {
			t.Fatalf("nacked %d: %v", n, err)
		}
		exec(t, db, `UPDATE {schema}.cursors SET due_to = '-infinity'`) // what is due is looked for at once
	}
	if want := []int{100, 10 + 50, 50, 100, 0}; !slices.Equal(got, want) {
		t.Errorf("%v messages came, want %v", got, want)
	}
}
