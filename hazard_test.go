package fastpubsub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fastpubsub/fastpubsub"
	"github.com/fastpubsub/fastpubsub/internal/crashtest"
	"github.com/fastpubsub/fastpubsub/store/storetest"
)

// A hazard is a way to lose a message, to deliver it twice, or to make others wait. Each check provokes one and says
// what went wrong. It must find nothing with the engine as it is, and something with each of the protections taken out:
// a protection is a line of an engine function, given here with what stands in its place.
type hazard struct {
	name        string
	protections []protection
	check       func(t testing.TB, b *fastpubsub.Broker, db *storetest.DB) error
}

type protection struct{ function, line, without string }

func TestHazards(t *testing.T) {
	t.Parallel()
	for _, h := range slices.Concat(openHazards, filterHazards, ackHazards, leaseHazards, slotHazards, byteHazards) {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			t.Run("protected", func(t *testing.T) {
				t.Parallel()
				b, db := newBroker(t)
				if err := h.check(t, b, db); err != nil {
					t.Error(err)
				}
			})
			for _, p := range h.protections {
				t.Run("without "+p.function, func(t *testing.T) {
					t.Parallel()
					b, db := newBroker(t)
					db.SkipInvariants()
					takeOut(t, db, p)
					err := h.check(t, b, db)
					if err == nil {
						t.Fatalf("nothing goes wrong without %q", p.line)
					}
					t.Logf("as it should: %v", err)
				})
			}
		})
	}
}

// takeOut installs an engine function without one of its protections.
func takeOut(t testing.TB, db *storetest.DB, p protection) {
	t.Helper()
	if err := (crashtest.Protection{Function: p.function, Line: p.line, Without: p.without}).TakeOut(t.Context(), db); err != nil {
		t.Fatal(err)
	}
}

// wantDelivered drains a subscription and compares.
func wantDelivered(t testing.TB, b *fastpubsub.Broker, subscriptionID string, max int, want ...fastpubsub.ID) error {
	t.Helper()
	var got []fastpubsub.ID
	for range 1000 { // an engine without a protection may not come to an end
		ids, err := consumeIDs(t, b, subscriptionID, max)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			break
		}
		got = append(got, ids...)
	}
	byID := func(a, b fastpubsub.ID) int { return slices.Compare(a[:], b[:]) }
	slices.SortFunc(got, byID)
	want = slices.SortedFunc(slices.Values(want), byID)
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("delivered (-want +got):\n%s", diff)
	}
	return nil
}

func consumeIDs(t testing.TB, b *fastpubsub.Broker, subscriptionID string, max int) ([]fastpubsub.ID, error) {
	t.Helper()
	msgs, err := b.Consume(t.Context(), subscriptionID, fastpubsub.ConsumeOptions{Consumer: "test", Max: max})
	return idsOf(msgs), err
}

// within fails what does not end in time, because it waits for somebody who does not go on.
func within(t testing.TB, what string, f func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func wantCode(err error, code string) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != code {
		return fmt.Errorf("got error %v, want one with code %s", err, code)
	}
	return nil
}
