package fastpubsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/fastpubsub/fastpubsub/store"
)

// MaintenanceSettings say how space comes back. The log is a ring of four slots: messages are written to the current one, and
// a slot is emptied as a whole when no subscription needs anything in it.
type MaintenanceSettings struct {
	// SlotAge is how long a slot is written to before the next one is, if that is empty. A subscription that is up to date
	// keeps one to two slots, and one that lags by more than two holds up those behind it. Shorter gives space back sooner;
	// each change costs every session a few milliseconds of planning. Default 10 minutes.
	SlotAge time.Duration

	// SlotBytes is the size, compressed and without indexes, at which a slot is left before that. Default 1 GiB.
	SlotBytes int64

	// SpillAfter is how long after a slot was left the messages in it that a subscription has not had yet are moved out of
	// it, to a row each, so that one subscription that nobody consumes from does not keep the log of all others. A row
	// takes several times the space and some 100 µs. Default 24 hours.
	SpillAfter time.Duration

	// Patience is how long a slot that nothing needs any more is kept for transactions that began before: to a pg_dump,
	// messages moved meanwhile would be missing. Longer than that nothing is kept, so that a forgotten transaction cannot fill
	// the disk. Default 1 hour.
	Patience time.Duration

	// Interval is how often [Broker.Run] looks, give or take a tenth. Default 10 seconds.
	Interval time.Duration
}

func (s MaintenanceSettings) orDefaults() MaintenanceSettings {
	if s.SlotAge == 0 {
		s.SlotAge = 10 * time.Minute
	}
	if s.SlotBytes == 0 {
		s.SlotBytes = 1 << 30
	}
	if s.SpillAfter == 0 {
		s.SpillAfter = 24 * time.Hour
	}
	if s.Patience == 0 {
		s.Patience = time.Hour
	}
	if s.Interval == 0 {
		s.Interval = 10 * time.Second
	}
	return s
}

func (s MaintenanceSettings) check(p *problems) {
	for _, limit := range []struct {
		field string
		value int64
	}{
		{"maintenance.slot_age", int64(s.SlotAge)},
		{"maintenance.slot_bytes", s.SlotBytes},
		{"maintenance.spill_after", int64(s.SpillAfter)},
		{"maintenance.patience", int64(s.Patience)},
		{"maintenance.interval", int64(s.Interval)},
	} {
		if limit.value < 0 {
			p.add(limit.field, "greater_than_equal", "must not be negative")
		}
	}
}

// Freed is what CleanupAcked did.
type Freed struct {
	Bytes   int64 // of slots that were emptied, without indexes
	Slots   int   // that were emptied
	Rotated int   // rings that went on to their next slot: of the log, and of leases
	Spilled int   // messages that were moved out of the log for subscriptions that lag
	Needed  int   // slots that were left and that a subscription still needs
	Waiting int   // slots that nothing needs, but that an older transaction may look into, or has a lock on
}

// A MaintenancePass is what one pass of [Broker.Run] did.
type MaintenancePass struct {
	Stuck Stuck
	Freed Freed
	Took  time.Duration
	Err   error // of what failed; the rest was done all the same
}

// CleanupAcked gives the space of messages back that all subscriptions have acked. It does by one call what [Broker.Run] does
// all the time, for those who call it from cron: a slot of the log is left when it has been written to for olderThan (or
// is large), and is emptied when nothing in it is needed, at this call or the next. It works in small steps: emptying a slot
// holds others up for 50 ms at most, moving messages out of one the consumers of that subscription for some 100 ms. Any
// number of processes may call it at once; each step is made by one. When ctx is cancelled the steps so far stand; after an
// error with one subscription or slot the others have had their turn.
//
// It returns an InvalidError if olderThan is negative.
func (b *Broker) CleanupAcked(ctx context.Context, olderThan time.Duration) (Freed, error) {
	if olderThan < 0 {
		return Freed{}, &InvalidError{[]Problem{{"older_than", "greater_than_equal", "must not be negative"}}}
	}
	if err := b.ready(ctx, b.pool); err != nil {
		return Freed{}, err
	}
	settings := b.maintenance
	settings.SlotAge = olderThan
	freed, err := b.maintain(ctx, settings)
	for try := 0; ; try++ {
		if err != nil {
			return freed, fmt.Errorf("cleanup of acked messages: %w", err)
		}
		// Most transactions are short.
		if freed.Waiting == 0 || try == waitingTries {
			return freed, nil
		}
		select {
		case <-ctx.Done():
			return freed, fmt.Errorf("cleanup of acked messages: %w", ctx.Err())
		case <-time.After(waitingPause):
		}
		freed.Needed, freed.Waiting = 0, 0
		for _, ring := range rings {
			if err == nil {
				err = b.emptyRing(ctx, ring, settings, &freed)
			}
		}
	}
}

const (
	waitingTries = 10
	waitingPause = 200 * time.Millisecond

	// stepsAPass is how many steps of moving messages a pass makes for one subscription; the next pass goes on.
	stepsAPass = 100
)

// Run does the maintenance that nobody else does until ctx ends, and then returns nil: at once and then every 10 seconds, or
// as the settings say, it ends what has expired, as [Broker.CleanupStuck] does, and gives space back, as
// [Broker.CleanupAcked] does. Any number of processes may run it at once; none of them is a leader, each step is made by one.
// What fails, because the database is away for example, is logged and tried again.
func (b *Broker) Run(ctx context.Context) error {
	for {
		if err := b.pass(ctx); err != nil && ctx.Err() == nil {
			b.logger.LogAttrs(ctx, slog.LevelWarn, "maintenance failed, it will be tried again", slog.Any("error", err))
		}
		interval := b.maintenance.Interval
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval*9/10 + rand.N(interval/5+1)):
		}
	}
}

func (b *Broker) pass(ctx context.Context) error {
	start := time.Now()
	stuck, stuckErr := b.CleanupStuck(ctx)
	if stuck != (Stuck{}) {
		b.logger.LogAttrs(ctx, slog.LevelInfo, "stuck messages cleaned up", slog.Int("released", stuck.Released),
			slog.Int("dead_letters", stuck.DeadLetters), slog.Int("busy_subscriptions", stuck.Busy))
	}
	freed, err := b.maintain(ctx, b.maintenance)
	if freed.Slots+freed.Rotated+freed.Spilled > 0 {
		b.logger.LogAttrs(ctx, slog.LevelInfo, "acked messages cleaned up", slog.Int64("freed_bytes", freed.Bytes),
			slog.Int("slots_emptied", freed.Slots), slog.Int("spilled_messages", freed.Spilled))
	}
	err = errors.Join(stuckErr, err)
	if b.onMaintenance != nil && ctx.Err() == nil {
		b.onMaintenance(MaintenancePass{Stuck: stuck, Freed: freed, Took: time.Since(start), Err: err})
	}
	return err
}

// rings are in the order in which they are looked after: what holds a lease may move from it to deliveries.
var rings = []string{store.RingLeases, store.RingMessages}

// maintain makes one pass over both rings. What goes wrong with one subscription or slot does not keep it from the others.
func (b *Broker) maintain(ctx context.Context, settings MaintenanceSettings) (Freed, error) {
	var freed Freed
	var errs []error
	for _, ring := range rings {
		full, err := b.rotate(ctx, ring, settings, &freed)
		errs = append(errs, err, b.emptyRing(ctx, ring, settings, &freed))
		if full {
			_, err = b.rotate(ctx, ring, settings, &freed)
			errs = append(errs, err)
		}
	}
	return freed, errors.Join(errs...)
}

func (b *Broker) emptyRing(ctx context.Context, ring string, settings MaintenanceSettings, freed *Freed) error {
	slots, err := b.store.ListSlots(ctx, b.pool, ring)
	if err != nil {
		return err
	}
	var errs []error
	for _, slot := range slots {
		if !slot.Current && slot.Bytes > 0 {
			errs = append(errs, b.empty(ctx, slot, settings, freed))
		}
	}
	return errors.Join(errs...)
}

func (b *Broker) rotate(ctx context.Context, ring string, settings MaintenanceSettings, freed *Freed) (full bool, err error) {
	rotated, full, err := b.store.Rotate(ctx, b.pool, ring, settings.SlotAge, settings.SlotBytes)
	if rotated {
		freed.Rotated++
	}
	return full, err
}

// empty empties a slot, if need be after it has moved what is in it for subscriptions out of it.
func (b *Broker) empty(ctx context.Context, slot store.Slot, settings MaintenanceSettings, freed *Freed) error {
	truncate := func() (outcome string, err error) {
		outcome, bytes, err := b.store.TruncateSlot(ctx, b.pool, slot.Ring, slot.Slot, settings.Patience)
		freed.Bytes += bytes
		return outcome, err
	}
	outcome, err := truncate()
	if outcome == store.Needed && slot.Left >= min(settings.SlotAge, settings.SpillAfter) { // most of it is over by itself before that
		moveErr := b.moveOut(ctx, slot, settings, freed)
		outcome, err = truncate()
		err = errors.Join(moveErr, err)
	}
	if outcome == store.Waiting && err == nil { // the first time it finds that nothing is needed
		outcome, err = truncate()
	}
	switch outcome {
	case store.Truncated:
		freed.Slots++
	case store.Needed:
		freed.Needed++
	case store.Waiting, store.Locked:
		freed.Waiting++
	}
	return err
}

// moveOut moves what subscriptions have in a slot out of it: leases and cursors to where the others are, leased messages to
// deliveries, and those that a subscription has not had yet, if it has had the time.
func (b *Broker) moveOut(ctx context.Context, slot store.Slot, settings MaintenanceSettings, freed *Freed) error {
	var needs []store.Need
	if slot.Ring == store.RingLeases {
		ids, err := b.store.LeaseSlotNeeds(ctx, b.pool, slot.Slot)
		if err != nil {
			return err
		}
		for _, id := range ids {
			needs = append(needs, store.Need{SubscriptionID: id, Leased: true})
		}
	} else {
		var err error
		if needs, err = b.store.MessageSlotNeeds(ctx, b.pool, slot.Slot, nil); err != nil {
			return err
		}
	}
	var errs []error
	for _, need := range needs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if need.Backlog && slot.Left >= settings.SpillAfter {
			errs = append(errs, b.spill(ctx, need.SubscriptionID, slot.Slot, freed))
		}
		if need.Leased && slot.Left >= settings.SlotAge {
			err := b.steps(func() (more bool, err error) {
				_, more, err = b.store.Vacate(ctx, b.pool, need.SubscriptionID, slot.Ring, slot.Slot)
				return more, err
			})
			if err != nil {
				errs = append(errs, fmt.Errorf("subscription %q: %w", need.SubscriptionID, err))
			}
		}
	}
	return errors.Join(errs...)
}

// spill moves a subscription past a slot of the log.
func (b *Broker) spill(ctx context.Context, id string, slot int16, freed *Freed) error {
	err := b.steps(func() (more bool, err error) {
		moved, more, err := b.store.Spill(ctx, b.pool, id)
		freed.Spilled += moved
		if err != nil || moved == 0 && !more { // a transaction in progress is in the way
			return false, err
		}
		needs, err := b.store.MessageSlotNeeds(ctx, b.pool, slot, &id)
		return len(needs) > 0 && needs[0].Backlog, err
	})
	if err != nil {
		return fmt.Errorf("subscription %q: %w", id, err)
	}
	return nil
}

// steps calls step until there is no more to do, or enough was done for one pass. That a subscription was deleted, or is busy,
// is no error.
func (b *Broker) steps(step func() (more bool, err error)) error {
	for range stepsAPass {
		more, err := step()
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrBusy) {
			return nil
		}
		if err != nil || !more {
			return err
		}
	}
	return nil
}
