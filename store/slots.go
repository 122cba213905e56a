package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// The rings of slots.
const (
	RingMessages = "messages" // the log
	RingLeases   = "leases"   // leases and cursors
)

// A Slot is one of the four of a ring.
type Slot struct {
	Ring    string
	Slot    int16
	Current bool
	Bytes   int64         // without indexes; 0 is empty
	Left    time.Duration // since it was the current one; 0 if that is not known
}

const listSlots = `
SELECT s.ring, s.slot, s.slot = {schema}.current_slot(s.ring),
       {schema}.slot_bytes(s.ring, s.slot), coalesce(greatest({schema}.clock() - s.until, '0'), '0')
FROM {schema}.slots s
WHERE s.ring = $1
ORDER BY s.until NULLS FIRST, s.slot`

// ListSlots returns the slots of a ring, those that were left first before the others.
func (s *Store) ListSlots(ctx context.Context, db DBTX, ring string) ([]Slot, error) {
	rows, _ := db.Query(ctx, s.listSlots, ring) // CollectRows reports Query's error
	slots, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Slot])
	return slots, translate(err)
}

const rotate = `SELECT {schema}.rotate($1, $2, $3)`

// Rotate moves a ring on to the next slot if that is empty and the current one is older than olderThan, or larger than
// maxBytes. full means that the next one is not empty.
func (s *Store) Rotate(ctx context.Context, db Batcher, ring string, olderThan time.Duration, maxBytes int64) (rotated, full bool, err error) {
	var outcome string
	err = inOne(ctx, db, row{&outcome}, s.rotate, ring, olderThan, maxBytes)
	return outcome == "rotated", outcome == "full", translate(err)
}

// Outcomes of TruncateSlot.
const (
	Truncated = "truncated"
	Needed    = "needed"  // by a subscription
	Waiting   = "waiting" // for transactions that may still look into it
	Locked    = "locked"  // somebody has a lock on it
	Empty     = "empty"
	Current   = "current"
	Busy      = "busy" // other maintenance is at work
)

const truncateSlot = `SELECT outcome, freed FROM {schema}.truncate_slot($1, $2, $3)`

// TruncateSlot gives the space of a slot back, in bytes, if nothing in it is needed. It waits for transactions that may still
// look into it, for up to patience since that was so first; "waiting" says: call again.
func (s *Store) TruncateSlot(ctx context.Context, db Batcher, ring string, slot int16, patience time.Duration) (outcome string, freed int64, err error) {
	err = inOne(ctx, db, row{&outcome, &freed}, s.truncateSlot, ring, slot, patience)
	return outcome, freed, translate(err)
}

// A Need is a subscription that keeps a slot of the log: by what it has not had yet, or by leases.
type Need struct {
	SubscriptionID  string
	Backlog, Leased bool
}

const messageSlotNeeds = `SELECT sub_id, backlog, leased FROM {schema}.message_slot_needs($1, $2) ORDER BY sub_id`

// MessageSlotNeeds returns the subscriptions that need a slot of the log; of all, or of one, if that is not nil.
func (s *Store) MessageSlotNeeds(ctx context.Context, db DBTX, slot int16, subID *string) ([]Need, error) {
	rows, _ := db.Query(ctx, s.messageSlotNeeds, slot, subID) // CollectRows reports Query's error
	needs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Need])
	return needs, translate(err)
}

const leaseSlotNeeds = `SELECT sub_id FROM {schema}.lease_slot_needs($1) ORDER BY sub_id`

// LeaseSlotNeeds returns the subscriptions that need a slot of leases and cursors.
func (s *Store) LeaseSlotNeeds(ctx context.Context, db DBTX, slot int16) ([]string, error) {
	rows, _ := db.Query(ctx, s.leaseSlotNeeds, slot) // CollectRows reports Query's error
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return ids, translate(err)
}

const vacate = `SELECT outcome, moved FROM {schema}.vacate($1, $2, $3)`

// Vacate moves what a subscription has in a slot of a ring out of it, one bounded step of it, as far as it is leased: the
// messages go to deliveries. It returns ErrNotFound if there is no such subscription and ErrBusy if its lock was held for
// too long.
func (s *Store) Vacate(ctx context.Context, db Batcher, subID, ring string, slot int16) (moved int, more bool, err error) {
	var leaseSlot, messageSlot *int16
	if ring == RingLeases {
		leaseSlot = &slot
	} else {
		messageSlot = &slot
	}
	return s.move(ctx, db, s.vacate, subID, leaseSlot, messageSlot)
}

const spill = `SELECT outcome, moved FROM {schema}.spill($1)`

// Spill moves about a thousand messages that a subscription has not had yet from the log to deliveries. It returns
// ErrNotFound if there is no such subscription and ErrBusy if its lock was held for too long.
func (s *Store) Spill(ctx context.Context, db Batcher, subID string) (moved int, more bool, err error) {
	return s.move(ctx, db, s.spill, subID)
}

func (s *Store) move(ctx context.Context, db Batcher, sql string, args ...any) (moved int, more bool, err error) {
	var outcome string
	err = inOne(ctx, db, row{&outcome, &moved}, sql, args...)
	if err != nil {
		return 0, false, translate(err)
	}
	return moved, outcome == "more", refused(outcome)
}

// refused is the error for an outcome of a function that takes a subscription's lock.
func refused(outcome string) error {
	switch outcome {
	case "no_subscription":
		return ErrNotFound
	case "busy":
		return ErrBusy
	}
	return nil
}

// row is where the columns of a row go.
type row []any

// inOne runs a function that returns one row in a READ COMMITTED transaction of its own, whatever the session's default, in one round
// trip: the commit is on its way with the call. What the function has locked waits for no client that is slow, stopped or cut off.
func inOne(ctx context.Context, db Batcher, into row, sql string, args ...any) error {
	var b pgx.Batch
	b.Queue(`begin isolation level read committed read write`)
	b.Queue(sql, args...).QueryRow(func(r pgx.Row) error { return r.Scan(into...) })
	b.Queue(`commit`)
	return db.SendBatch(ctx, &b).Close()
}
