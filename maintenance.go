package fastpubsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/fastpubsub/fastpubsub/store"
)

// MaintenanceSettings say how space comes back. The log is a ring of four slots: messages are written to the current one, and
// a slot is emptied as a whole when no subscription needs anything in it.
type MaintenanceSettings struct {
	// Off leaves maintenance to others: [Broker.Run] does none.
	Off bool

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

	// PassTime is how long a pass over all subscriptions goes on to make steps, each of which ends what has expired or moves
	// messages for one of them, in turns; the next pass goes on with the others. It holds for a call of CleanupStuck or
	// CleanupAcked, too. Default 1 minute.
	PassTime time.Duration

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
	if s.PassTime == 0 {
		s.PassTime = time.Minute
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
		{"maintenance.pass_time", int64(s.PassTime)},
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
	More    bool  // time was over before all was moved that could be
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
	turns := b.newRingTurns()
	freed, err := b.maintain(ctx, settings, turns)
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
				err = b.emptyRing(ctx, ring, settings, turns[ring], &freed)
			}
		}
	}
}

const (
	waitingTries = 10
	waitingPause = 200 * time.Millisecond
)

// Run does what nobody else does until ctx ends, and then returns nil. Any number of processes may run it at once, with none of
// them a leader. What fails, because the database is away for example, is logged and tried again.
//
// Maintenance: at once and then every 10 seconds, or as the settings say, it ends what has expired, as [Broker.CleanupStuck]
// does, and gives space back, as [Broker.CleanupAcked] does; each step is made by one process. Tables that were copied from
// another database are made to work first, as [Broker.Repair] does.
//
// Notifications: it listens, on one connection of its own, for what other processes publish, and wakes those who wait for it in
// this one; and it tells others, within some milliseconds after the commit, what is published here. Without it, or where it
// cannot listen, consumers in this process poll: ten times a second whether anybody has published. Consumers of other processes
// hear at once of what is published here only if it runs here, else within some two seconds. It logs whether notifications
// arrive; see [Broker.Listening]. Of several calls on one Broker one does this.
//
// Both can be switched off, in [Config].
func (b *Broker) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if !b.maintenance.Off {
		wg.Go(func() { b.maintainUntil(ctx) })
	}
	if !b.notifications.Off && b.notifier.running.CompareAndSwap(false, true) {
		defer b.notifier.running.Store(false)
		wg.Go(func() { b.listen(ctx) })
		wg.Go(func() { b.notify(ctx) })
	}
	<-ctx.Done()
	wg.Wait()
	return nil
}

func (b *Broker) maintainUntil(ctx context.Context) {
	for {
		if err := b.pass(ctx); err != nil && ctx.Err() == nil {
			b.logger.LogAttrs(ctx, slog.LevelWarn, "maintenance failed, it will be tried again", slog.Any("error", err))
		}
		interval := b.maintenance.Interval
		select {
		case <-ctx.Done():
			return
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
	freed, err := b.maintain(ctx, b.maintenance, b.newRingTurns())
	if freed.Slots+freed.Rotated+freed.Spilled > 0 {
		b.logger.LogAttrs(ctx, slog.LevelInfo, "acked messages cleaned up", slog.Int64("freed_bytes", freed.Bytes),
			slog.Int("slots_emptied", freed.Slots), slog.Int("spilled_messages", freed.Spilled))
	}
	err = errors.Join(stuckErr, err)
	if errors.Is(err, ErrRestored) {
		var repaired Repaired
		if repaired, err = b.Repair(ctx); repaired.Restored {
			b.logger.LogAttrs(ctx, slog.LevelWarn, "messages had been copied from another database, they can be delivered now",
				slog.Int("messages", repaired.Messages))
		}
	}
	if b.onMaintenance != nil && ctx.Err() == nil {
		b.onMaintenance(MaintenancePass{Stuck: stuck, Freed: freed, Took: time.Since(start), Err: err})
	}
	return err
}

// Repaired is what Repair did.
type Repaired struct {
	Restored bool // the tables had been copied from another cluster
	Messages int  // that were moved out of the log, one for each subscription that has not acked it
}

// Repair makes tables work that were copied here from another database cluster: a dump was restored, by pg_restore or psql, or
// logical replication brought them. The log goes by transaction ids, which are others here, and so all methods that need it
// return [ErrRestored] until it has been repaired. Nothing is lost: every message that a subscription had not acked in the copy
// is delivered to it, under the same id; what consumers held stays theirs until its ack deadline. Other subscriptions,
// dead letters and counts are as they were.
//
// It is one transaction that locks all tables, and moves each such message to a row of its own, some 20,000 a second. If ctx
// is cancelled nothing has changed. Where there is nothing to repair it does nothing; any number of processes may call it at
// once. [Broker.Run] does it by itself. What is copied by a file system snapshot, pg_basebackup, pg_upgrade or CREATE DATABASE
// with a TEMPLATE needs no repair, nor does a standby that is promoted.
//
// It returns ErrBusy when others held locks on the tables for more than 5 seconds, and an error while a subscription of
// logical replication still writes to them: disable that first.
func (b *Broker) Repair(ctx context.Context) (Repaired, error) {
	err := b.store.CheckSchema(ctx, b.pool)
	if !errors.Is(err, ErrRestored) {
		return Repaired{}, err
	}
	outcome, restored, moved, err := b.store.Repair(ctx, b.pool)
	switch {
	case err != nil:
		return Repaired{}, fmt.Errorf("repair: %w", err)
	case outcome == store.RepairReplicated:
		return Repaired{}, fmt.Errorf("repair: a subscription of logical replication still writes to the tables, disable it first: %w", ErrRestored)
	case outcome == store.RepairLocked:
		return Repaired{}, fmt.Errorf("repair: %w", ErrBusy)
	}
	return Repaired{restored, moved}, nil
}

// rings are in the order in which they are looked after: what holds a lease may move from it to deliveries.
var rings = []string{store.RingLeases, store.RingMessages}

// maintain makes one pass over both rings. What goes wrong with one subscription or slot does not keep it from the others.
func (b *Broker) maintain(ctx context.Context, settings MaintenanceSettings, turns ringTurns) (Freed, error) {
	var freed Freed
	var errs []error
	for _, ring := range rings {
		full, err := b.rotate(ctx, ring, settings, &freed)
		errs = append(errs, err, b.emptyRing(ctx, ring, settings, turns[ring], &freed))
		if full {
			_, err = b.rotate(ctx, ring, settings, &freed)
			errs = append(errs, err)
		}
	}
	return freed, errors.Join(errs...)
}

func (b *Broker) emptyRing(ctx context.Context, ring string, settings MaintenanceSettings, turns *turns, freed *Freed) error {
	slots, err := b.store.ListSlots(ctx, b.pool, ring)
	if err != nil {
		return err
	}
	var errs []error
	for _, slot := range slots {
		if !slot.Current && slot.Bytes > 0 {
			errs = append(errs, b.empty(ctx, slot, settings, turns, freed))
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
func (b *Broker) empty(ctx context.Context, slot store.Slot, settings MaintenanceSettings, turns *turns, freed *Freed) error {
	truncate := func() (outcome string, err error) {
		outcome, bytes, err := b.store.TruncateSlot(ctx, b.pool, slot.Ring, slot.Slot, settings.Patience)
		freed.Bytes += bytes
		return outcome, err
	}
	outcome, err := truncate()
	if outcome == store.Needed && slot.Left >= min(settings.SlotAge, settings.SpillAfter) { // most of it is over by itself before that
		moveErr := b.moveOut(ctx, slot, settings, turns, freed)
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
func (b *Broker) moveOut(ctx context.Context, slot store.Slot, settings MaintenanceSettings, turns *turns, freed *Freed) error {
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
	var steps []step
	for _, need := range needs {
		if need.Backlog && slot.Left >= settings.SpillAfter {
			steps = append(steps, subscriptionStep(need.SubscriptionID, func(ctx context.Context) (bool, error) {
				return b.spill(ctx, need.SubscriptionID, slot.Slot, freed)
			}))
		}
		if need.Leased && slot.Left >= settings.SlotAge {
			steps = append(steps, subscriptionStep(need.SubscriptionID, func(ctx context.Context) (more bool, err error) {
				_, more, err = b.store.Vacate(ctx, b.pool, need.SubscriptionID, slot.Ring, slot.Slot)
				return more, err
			}))
		}
	}
	more, err := turns.take(ctx, steps)
	freed.More = freed.More || more
	return err
}

// spill moves some of what a subscription has in a slot of the log and has not had yet. more says that there is more.
func (b *Broker) spill(ctx context.Context, id string, slot int16, freed *Freed) (more bool, err error) {
	moved, more, err := b.store.Spill(ctx, b.pool, id)
	freed.Spilled += moved
	if err != nil || moved == 0 && !more { // a transaction in progress is in the way
		return false, err
	}
	needs, err := b.store.MessageSlotNeeds(ctx, b.pool, slot, &id)
	return len(needs) > 0 && needs[0].Backlog, err
}

// turns share the time of a pass among subscriptions.
type turns struct {
	limit time.Duration
	until time.Time // set by the first step, which is made however short the time is
}

// ringTurns are those of each ring: what there is to do in one does not keep a pass from the other.
type ringTurns map[string]*turns

func (b *Broker) newRingTurns() ringTurns {
	all := ringTurns{}
	for _, ring := range rings {
		all[ring] = b.newTurns()
	}
	return all
}

func (b *Broker) newTurns() *turns { return &turns{limit: b.maintenance.PassTime} }

// A step is made for one subscription, as often as it says that there is more to do.
type step struct {
	name string // for errors
	do   func(ctx context.Context) (more bool, err error)
}

func subscriptionStep(id string, do func(ctx context.Context) (more bool, err error)) step {
	return step{fmt.Sprintf("subscription %q", id), do}
}

// take makes steps in turns, beginning anywhere, until none has more to do or the time is over; then more is true. What goes
// wrong with one does not keep it from the others. That a subscription was deleted, or is busy, is no error.
func (t *turns) take(ctx context.Context, steps []step) (more bool, err error) {
	rand.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	var errs []error
	for len(steps) > 0 {
		var again []step
		for _, s := range steps {
			if ctx.Err() != nil {
				return true, errors.Join(append(errs, ctx.Err())...)
			}
			now := time.Now()
			if t.until.IsZero() {
				t.until = now.Add(t.limit)
			} else if !now.Before(t.until) {
				return true, errors.Join(errs...)
			}
			more, err := s.do(ctx)
			switch {
			case errors.Is(err, ErrNotFound), errors.Is(err, ErrBusy):
			case err != nil:
				errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			case more:
				again = append(again, s)
			}
		}
		steps = again
	}
	return false, errors.Join(errs...)
}
