package doctor

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fastpubsub/fastpubsub/store"
)

// A slot is a partition of a ring, or of each table of a ring that several share.
type slot struct {
	Number int
	Bytes  int64 // with indexes and TOAST
	Pages  int64 // of the table that rows of all kinds are in; 0 is empty
}

// getSlots has the slots of the ring that a table's partitions make.
const getSlots = `
SELECT substring(c.relname FROM '\d+$')::int, pg_total_relation_size(c.oid), pg_relation_size(c.oid) / current_setting('block_size')::int
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = $1::regclass
ORDER BY 1`

// ring returns the slots of a ring, and which is the current one: the value of its sequence, modulo their number.
func (e *examiner) ring(ctx context.Context, sequence string, tables ...string) (slots []slot, current int, err error) {
	for _, table := range tables {
		part, err := rows[slot](ctx, e, getSlots, e.sql("{schema}."+table))
		if err != nil {
			return nil, 0, err
		}
		if slots == nil {
			slots = part
			continue
		}
		for i := range min(len(slots), len(part)) {
			slots[i].Bytes += part[i].Bytes
			slots[i].Pages += part[i].Pages
		}
	}
	at, err := row[struct{ Last int64 }](ctx, e, "SELECT last_value FROM {schema}."+sequence)
	if err != nil || len(slots) == 0 {
		return nil, 0, err
	}
	return slots, int(at.Last % int64(len(slots))), nil
}

// getLogEnds looks at the first and the last pages of a slot, which is written from front to back.
const getLogEnds = `
SELECT coalesce((SELECT extract(epoch FROM {schema}.clock() - min(m.created_at)) FROM {schema}.messages_%[1]d m WHERE m.ctid < '(64,0)')::float8, -1),
       coalesce((SELECT extract(epoch FROM {schema}.clock() - max(m.created_at)) FROM {schema}.messages_%[1]d m WHERE m.ctid >= '(%[2]d,0)')::float8, -1),
       coalesce((SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint - max(m.xid) FROM {schema}.messages_%[1]d m WHERE m.ctid >= '(%[2]d,0)'), -1)`

// getReaders has the subscriptions that still need a slot of the log: for what they have not looked at, that of late
// transactions included, or for what is leased.
const getReaders = `SELECT sub_id, backlog, leased FROM {schema}.message_slot_needs(%d::smallint) ORDER BY sub_id`

// getWaits has the transactions for which maintenance waits before it truncates a slot, and whether it has found nothing in
// it that is needed.
const getWaits = `
SELECT s.unneeded_at IS NOT NULL,
       ARRAY(SELECT DISTINCT coalesce('pid ' || l.pid, 'a prepared transaction') FROM pg_locks l WHERE l.granted AND l.virtualtransaction = ANY (s.waits_for) ORDER BY 1)
FROM {schema}.slots s
WHERE s.ring = $1 AND s.slot = $2`

type waits struct {
	Unneeded bool
	For      []string
}

func (e *examiner) waits(ctx context.Context, ring string, slot int) (waits, error) {
	return row[waits](ctx, e, getWaits, ring, slot)
}

// checkMessageSlots looks at the ring of the log.
func (e *examiner) checkMessageSlots(ctx context.Context) error {
	slots, current, err := e.ring(ctx, "message_slot", "messages")
	if err != nil {
		return err
	}
	sessions, err := rows[session](ctx, e, getSessions)
	if err != nil {
		return err
	}
	var empty []string
	for _, s := range slots {
		if s.Pages == 0 {
			empty = append(empty, slotName(s.Number, current))
			continue
		}
		if err := e.checkMessageSlot(ctx, s, current, sessions); err != nil {
			return err
		}
	}
	e.addEmpty(empty)
	return nil
}

func slotName(number, current int) string {
	if number == current {
		return strconv.Itoa(number) + " (current)"
	}
	return strconv.Itoa(number)
}

func (e *examiner) addEmpty(slots []string) {
	if len(slots) > 0 {
		e.add(OK, "", facts{"slots": slots}, "empty: %s", strings.Join(slots, ", "))
	}
}

func (e *examiner) checkMessageSlot(ctx context.Context, s slot, current int, sessions []session) error {
	ends, err := row[struct {
		Oldest, Newest float64
		XidAge         int64 // of its newest transaction
	}](ctx, e, fmt.Sprintf(getLogEnds, s.Number, max(0, s.Pages-64)))
	if err != nil {
		return err
	}
	readers, err := indexed[struct {
		ID             string
		Unread, Leased bool
	}](ctx, e, fmt.Sprintf(getReaders, s.Number))
	if err != nil {
		return err
	}
	waits, err := e.waits(ctx, store.RingMessages, s.Number)
	if err != nil {
		return err
	}
	unread, leased, snapshots := []string{}, []string{}, []string{}
	for _, r := range readers {
		if r.Unread {
			unread = append(unread, r.ID)
		}
		if r.Leased {
			leased = append(leased, r.ID)
		}
	}
	for i := range sessions { // until maintenance has noted for whom it waits
		if o := &sessions[i]; !waits.Unneeded && ends.XidAge >= 0 && max(o.SnapshotAge, o.WriteAge) >= ends.XidAge {
			snapshots = append(snapshots, fmt.Sprintf("pid %d", o.PID))
		}
	}
	var keep reasons
	keep.add("unread by subscription", unread, "start their consumers, or delete subscriptions that nobody needs")
	keep.add("leased by subscription", leased, "wait for their acks, or run fastpubsub cleanup_stuck_messages")
	keep.add("seen by the older snapshot of", snapshots, "see horizon")
	keep.addWaits(waits)
	f := facts{"slot": s.Number, "current": s.Number == current, "bytes": s.Bytes, "oldest_seconds": ends.Oldest, "newest_seconds": ends.Newest,
		"unread_by": some(unread), "leased_by": some(leased), "snapshots": some(snapshots), "waits_for": some(waits.For)}
	text := fmt.Sprintf("slot %s of the log: %s", slotName(s.Number, current), size(s.Bytes))
	if ends.Oldest >= 0 {
		text += ", oldest message " + span(seconds(ends.Oldest))
	}
	if ends.Newest >= 0 {
		text += ", newest " + span(seconds(ends.Newest))
	}
	e.addSlot(s, current, seconds(ends.Oldest), f, text, keep)
	return nil
}

// reasons are why a slot cannot be truncated, and what to do about them.
type reasons struct{ texts, remedies []string }

func (r *reasons) add(why string, names []string, remedy string) {
	if len(names) == 0 {
		return
	}
	shown := names[:min(len(names), most)]
	text := why + " " + strings.Join(shown, ", ")
	if n := len(names) - len(shown); n > 0 {
		text += fmt.Sprintf(" and %s more", count(n))
	}
	r.texts = append(r.texts, text)
	r.remedies = append(r.remedies, remedy)
}

// addWaits: those that still run. Maintenance waits for them up to a limit, MaintenanceSettings.Patience.
func (r *reasons) addWaits(w waits) {
	why := "may still be written by"
	if w.Unneeded {
		why = "nothing in it is needed, but it may still be read by"
	}
	r.add(why, w.For, "end those transactions, or wait: see horizon")
}

// some keeps a list of facts from being endless.
func some(names []string) []string { return names[:min(len(names), 100)] }

// addSlot judges a slot that is not empty. The current one is what it is.
func (e *examiner) addSlot(s slot, current int, age time.Duration, f facts, text string, keep reasons) {
	if s.Number == current {
		severity := OK
		if s.Bytes >= e.limits.SlotBytes {
			severity = Notice
		}
		remedy := ""
		if severity > OK {
			remedy = "fastpubsub cleanup_acked_messages goes on to the next slot once that is empty"
		}
		e.add(severity, remedy, f, "%s", text)
		return
	}
	severity := OK
	if len(keep.texts) == 0 {
		if age >= e.limits.SlotAge {
			severity = Warning // nobody has looked
		}
		e.add(severity, "maintenance truncates it: that of the server, or fastpubsub cleanup_acked_messages by cron", f, "%s; nothing keeps it from being truncated", text)
		return
	}
	switch {
	case age >= e.limits.SlotAge:
		severity = Warning
	case s.Bytes >= e.limits.SlotBytes:
		severity = Notice
	}
	e.add(severity, strings.Join(slices.Compact(keep.remedies), "; "), f, "%s; it cannot be truncated: %s", text, strings.Join(keep.texts, "; "))
}

// getHolders has the subscriptions that still need a slot of leases: for leases that are open or not yet counted, or
// because their newest cursor is there, which moves when they are consumed from.
const getHolders = `
SELECT s.id, EXISTS (SELECT FROM {schema}.open_leases(s.num, c.swept_to) l WHERE l.slot = %[1]d) AS leases, c.slot = %[1]d
FROM {schema}.subscriptions s
CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
ORDER BY s.id`

// getLeaseEnds has how long ago the earliest deadline was of the leases in the first pages. That of a lease which was moved out is
// '-infinity', from which older servers do not subtract.
const getLeaseEnds = `
SELECT coalesce((
    SELECT extract(epoch FROM {schema}.clock() - min(l.deadline)) FROM {schema}.leases_%d l
    WHERE l.ctid < '(64,0)' AND l.deadline > '-infinity'
)::float8, 0)`

// checkLeaseSlots looks at the ring of leases and cursors.
func (e *examiner) checkLeaseSlots(ctx context.Context) error {
	slots, current, err := e.ring(ctx, "lease_slot", "leases", "cursors")
	if err != nil {
		return err
	}
	var empty []string
	for _, s := range slots {
		if s.Pages == 0 {
			empty = append(empty, slotName(s.Number, current))
			continue
		}
		if err := e.checkLeaseSlot(ctx, s, current); err != nil {
			return err
		}
	}
	e.addEmpty(empty)
	return nil
}

func (e *examiner) checkLeaseSlot(ctx context.Context, s slot, current int) error {
	oldest, err := row[struct{ Seconds float64 }](ctx, e, fmt.Sprintf(getLeaseEnds, s.Number))
	if err != nil {
		return err
	}
	holders, err := indexed[struct {
		ID             string
		Leases, Cursor bool
	}](ctx, e, fmt.Sprintf(getHolders, s.Number))
	if err != nil {
		return err
	}
	waits, err := e.waits(ctx, store.RingLeases, s.Number)
	if err != nil {
		return err
	}
	leases, cursors := []string{}, []string{}
	for _, h := range holders {
		if h.Leases {
			leases = append(leases, h.ID)
		}
		if h.Cursor {
			cursors = append(cursors, h.ID)
		}
	}
	var keep reasons
	keep.add("leases that are open or not yet counted, of subscription", leases, "wait for their acks, or run fastpubsub cleanup_stuck_messages")
	keep.add("the state of subscription", cursors, "consume from them, or delete those that nobody needs")
	keep.addWaits(waits)
	f := facts{"slot": s.Number, "current": s.Number == current, "bytes": s.Bytes, "earliest_deadline_seconds_ago": oldest.Seconds, "leases_of": some(leases), "cursors_of": some(cursors), "waits_for": some(waits.For)}
	text := fmt.Sprintf("slot %s of leases and cursors: %s", slotName(s.Number, current), size(s.Bytes))
	if oldest.Seconds > 0 {
		text += ", earliest deadline " + span(seconds(oldest.Seconds)) + " ago"
	}
	e.addSlot(s, current, seconds(oldest.Seconds), f, text, keep)
	return nil
}
