package doctor

import (
	"context"
	"fmt"
	"time"
)

// getBehind has the subscriptions whose cursors are furthest back first. One was consumed from if it has leases, or some
// were swept, or what was due was handed out.
const getBehind = `
SELECT s.id, t.id, extract(epoch FROM {schema}.clock() - s.created_at)::float8,
       c.swept_to = '-infinity' AND c.due_to = '-infinity' AND NOT EXISTS (SELECT FROM {schema}.leases l WHERE l.sub = s.num),
       (SELECT count(*) FROM {schema}.subscriptions)::int
FROM {schema}.subscriptions s
JOIN {schema}.topics t ON t.num = s.topic_num
CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
ORDER BY c.xid, c.seq, s.num
LIMIT 10000`

const getWaiting = `
SELECT available, delayed, estimated, coalesce(extract(epoch FROM now_at - oldest_at)::float8, 0)
FROM {schema}.metrics($1) WHERE now_at IS NOT NULL`

// getFirst has the first message of the log that a subscription has not looked at, and how large its slot is.
const getFirst = `
SELECT m.slot::int, extract(epoch FROM {schema}.clock() - m.created_at)::float8, pg_total_relation_size(m.tableoid)
FROM {schema}.subscriptions s
CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
CROSS JOIN LATERAL (
    SELECT m.slot, m.created_at, m.tableoid::regclass AS tableoid FROM {schema}.messages m
    WHERE m.topic_num = s.topic_num AND (m.xid, m.base) >= (c.xid, c.seq & ~65535::bigint) AND (m.xid, m.base + m.n - 1) > (c.xid, c.seq)
    ORDER BY m.xid, m.base
    LIMIT 1
) m
WHERE s.id = $1`

// A reader is a subscription, seen as what reads the log.
type reader struct {
	ID, Topic  string
	AgeSeconds float64
	Never      bool // consumed from
	Total      int  // subscriptions
}

// A waiting is what waits for a subscription.
type waiting struct {
	Available, Delayed int64
	Estimated          bool
	OldestSeconds      float64
}

// first is the first message that a subscription has not looked at.
type first struct {
	Slot       int
	AgeSeconds float64
	Bytes      int64 // of the slot
}

// checkLag looks for subscriptions whose messages wait for long.
func (e *examiner) checkLag(ctx context.Context) error {
	subs, err := indexed[reader](ctx, e, getBehind)
	if err != nil {
		return err
	}
	listed, left, looked, uncounted, inAll := 0, 0, 0, 0, int64(0)
	for _, s := range subs {
		if deadline, _ := ctx.Deadline(); time.Until(deadline) < e.limits.Check/3 {
			break
		}
		looked++
		w, isCounted, err := e.countWaiting(ctx, s.ID)
		if err != nil {
			return err
		}
		severity := e.lagSeverity(w)
		var firsts []first
		if !isCounted || severity > OK && listed < most {
			if firsts, err = indexed[first](ctx, e, getFirst, s.ID); err != nil {
				return err
			}
		}
		if !isCounted {
			uncounted++
			if len(firsts) > 0 {
				w = waiting{Available: 1, OldestSeconds: firsts[0].AgeSeconds} // at least
				severity = e.lagSeverity(w)
			}
		}
		inAll += w.Available
		switch {
		case severity == OK:
		case listed == most:
			left++
		default:
			listed++
			e.addLag(severity, s, w, isCounted, firsts)
		}
	}
	e.addMore(Notice, left, "subscriptions that lag")
	if uncounted > 0 {
		e.add(Warning, busyRemedy, facts{"subscriptions": uncounted}, "what waits for %s could not be counted within %s", counted(uncounted, "subscription"), span(e.limits.Check/5))
	}
	if len(subs) > 0 && looked < subs[0].Total {
		e.add(Notice, "", facts{"looked_at": looked, "subscriptions": subs[0].Total}, "there was time for %s of %s, those that are furthest behind first",
			count(looked), counted(subs[0].Total, "subscription"))
	}
	if listed+uncounted == 0 {
		e.add(OK, "", facts{"subscriptions": looked, "available": inAll}, "%s, none lags; %s in all", counted(looked, "subscription"), waitsWait(inAll, "message"))
	}
	return nil
}

// countWaiting counts for a part of the check's time, and says whether that was enough. A backlog that takes longer must
// not keep doctor from speaking of it.
func (e *examiner) countWaiting(ctx context.Context, id string) (w waiting, counted bool, err error) {
	brief, cancel := context.WithTimeout(ctx, e.limits.Check/5)
	defer cancel()
	all, err := rows[waiting](brief, e, getWaiting, id)
	switch {
	case err == nil && len(all) == 0: // deleted meanwhile
		return w, true, nil
	case err == nil:
		return all[0], true, nil
	case brief.Err() != nil && ctx.Err() == nil:
		return w, false, e.connect(ctx)
	}
	return w, false, err
}

// lagSeverity judges what waits, but for what waits for its backoff.
func (e *examiner) lagSeverity(w waiting) Severity {
	switch oldest := seconds(w.OldestSeconds); {
	case w.Available <= w.Delayed:
		return OK
	case oldest >= e.limits.LagWarning:
		return Warning
	case oldest >= e.limits.LagNotice:
		return Notice
	}
	return OK
}

func (e *examiner) addLag(severity Severity, s reader, w waiting, isCounted bool, firsts []first) {
	f := facts{"subscription": s.ID, "topic": s.Topic, "oldest_seconds": w.OldestSeconds, "never_consumed": s.Never}
	text := "more messages wait than can be counted in " + span(e.limits.Check/5)
	if isCounted {
		f["available"], f["available_estimated"], f["delayed"] = w.Available, w.Estimated, w.Delayed
		text = waitsWait(w.Available, "message")
		if w.Estimated {
			text = "about " + text
		}
	}
	text += ", the oldest for " + span(seconds(w.OldestSeconds))
	if len(firsts) > 0 {
		f["slot"], f["slot_bytes"] = firsts[0].Slot, firsts[0].Bytes
		text += fmt.Sprintf("; slot %d of the log, %s, is kept for it", firsts[0].Slot, size(firsts[0].Bytes))
	}
	if s.Never {
		e.add(severity, fmt.Sprintf("start a consumer; or, if nobody needs it, delete it: curl -X DELETE $API/subscriptions/%s", s.ID), f,
			"nobody has consumed from subscription %s since it was made %s ago: %s", s.ID, span(seconds(s.AgeSeconds)), text)
	} else {
		e.add(severity, "see whether its consumers run; more of them, or larger batches, are faster", f, "subscription %s lags: %s", s.ID, text)
	}
}

const getDeadLetters = `
SELECT s.id, d.n, extract(epoch FROM {schema}.clock() - d.oldest)::float8, coalesce(n.last_error, '-')
FROM (SELECT d.sub, count(*) AS n, min(d.dead_at) AS oldest FROM {schema}.deliveries d WHERE d.state = 'dead' GROUP BY d.sub) d
JOIN {schema}.subscriptions s ON s.num = d.sub
CROSS JOIN LATERAL (
    SELECT left(n.last_error, 100) AS last_error FROM {schema}.deliveries n WHERE n.sub = d.sub AND n.state = 'dead'
    ORDER BY n.dead_at DESC, n.xid DESC, n.seq DESC LIMIT 1
) n
ORDER BY d.n DESC, s.id`

// checkDeadLetters counts them.
func (e *examiner) checkDeadLetters(ctx context.Context) error {
	queues, err := indexed[struct {
		ID            string
		N             int64
		OldestSeconds float64
		LastError     string
	}](ctx, e, getDeadLetters)
	if err != nil {
		return err
	}
	for i, q := range queues {
		if i == most {
			e.addMore(Notice, len(queues)-most, "subscriptions with dead letters")
			break
		}
		severity := Notice
		if q.N >= e.limits.DeadLetters {
			severity = Warning
		}
		e.add(severity, fmt.Sprintf("fastpubsub dlq list %[1]s; then fastpubsub dlq reprocess %[1]s --all, or fastpubsub dlq purge %[1]s --all", q.ID),
			facts{"subscription": q.ID, "dead_letters": q.N, "oldest_seconds": q.OldestSeconds, "last_error": q.LastError},
			"subscription %s has %s, the oldest for %s; the newest says: %s", q.ID, counted(q.N, "dead letter"), span(seconds(q.OldestSeconds)), q.LastError)
	}
	if len(queues) == 0 {
		e.add(OK, "", nil, "no dead letters")
	}
	return nil
}

// getLeases has what is leased, and nobody has looked at since its deadline, or whose deadline is far away.
const getLeases = `
SELECT s.id, l.deadline < {schema}.clock(), sum(l.n)::bigint, max(abs(extract(epoch FROM {schema}.clock() - l.deadline)))::float8, min(l.consumer)
FROM {schema}.subscriptions s
CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
CROSS JOIN LATERAL (
    SELECT l.deadline, l.consumer, (SELECT sum(upper(r) - lower(r)) FROM unnest(l.remaining) r) AS n
    FROM {schema}.leases l
    WHERE l.sub = s.num AND l.deadline > '-infinity' AND l.deadline > c.swept_to AND NOT isempty(l.remaining)
    UNION ALL
    SELECT d.next_at, d.consumer, 1 FROM {schema}.deliveries d
    WHERE d.sub = s.num AND d.state = 'leased'
) l
WHERE l.deadline < {schema}.clock() - make_interval(secs => $1) OR l.deadline > {schema}.clock() + make_interval(secs => $2)
GROUP BY 1, 2
ORDER BY 4 DESC, 1`

const getHeld = `
SELECT s.id, count(*) FROM {schema}.held_leases h JOIN {schema}.subscriptions s ON s.num = h.sub GROUP BY s.id ORDER BY 2 DESC, 1`

// checkLeases looks for messages that consumers have had for too long.
func (e *examiner) checkLeases(ctx context.Context) error {
	leases, err := indexed[struct {
		ID       string
		Passed   bool
		Messages int64
		Seconds  float64
		Consumer string
	}](ctx, e, getLeases, e.limits.LeaseOverdue.Seconds(), e.limits.LeaseHeld.Seconds())
	if err != nil {
		return err
	}
	for i, l := range leases {
		if i == most {
			e.addMore(Notice, len(leases)-most, "subscriptions with such leases")
			break
		}
		f := facts{"subscription": l.ID, "messages": l.Messages, "seconds": l.Seconds, "consumer": l.Consumer}
		if l.Passed {
			e.add(Warning, "fastpubsub cleanup_stuck_messages, by cron; and see why nobody consumes", f,
				"the ack deadline of %s of subscription %s has passed, the first %s ago, and nobody has looked since; consumer %s has or had some",
				counted(l.Messages, "message"), l.ID, span(seconds(l.Seconds)), l.Consumer)
		} else {
			e.add(Notice, "if that consumer is gone, nobody else gets them before", f,
				"%s with consumers of subscription %s for up to %s more, some with %s", isAre(l.Messages, "message"), l.ID, span(seconds(l.Seconds)), l.Consumer)
		}
	}
	held, err := rows[struct {
		ID string
		N  int64
	}](ctx, e, getHeld)
	if err != nil {
		return err
	}
	for i, h := range held {
		if i == most {
			e.addMore(Notice, len(held)-most, "subscriptions with locked leases")
			break
		}
		e.add(Notice, "see writers for transactions that have acked or nacked and stay open; then fastpubsub cleanup_stuck_messages", facts{"subscription": h.ID, "leases": h.N},
			"%s expired that a transaction has locked, or had, of subscription %s: the messages wait until it ends", hasHave(h.N, "lease"), h.ID)
	}
	if len(leases)+len(held) == 0 {
		e.add(OK, "", nil, "no lease is held for long")
	}
	return nil
}

const getStates = `
SELECT coalesce(d.state, 'none'), d.n, pg_total_relation_size('{schema}.deliveries'),
       coalesce(pg_stat_get_live_tuples('{schema}.deliveries'::regclass), 0),
       coalesce(pg_stat_get_tuples_inserted('{schema}.deliveries'::regclass), 0),
       coalesce(pg_stat_get_tuples_deleted('{schema}.deliveries'::regclass), 0)
FROM (SELECT 1) one
LEFT JOIN (SELECT d.state::text, count(*) AS n FROM (SELECT d.state FROM {schema}.deliveries d LIMIT $1) d GROUP BY 1) d ON true
WHERE true
ORDER BY 2 DESC`

// checkDeliveries looks at how much has left the happy path.
func (e *examiner) checkDeliveries(ctx context.Context) error {
	looked := 10 * e.limits.Deliveries
	states, err := rows[struct {
		State                          string
		N                              *int64
		Bytes, Live, Inserted, Deleted int64
	}](ctx, e, getStates, looked)
	if err != nil {
		return err
	}
	f, total, text := facts{}, int64(0), ""
	for _, s := range states {
		f["bytes"], f["inserted"], f["deleted"] = s.Bytes, s.Inserted, s.Deleted
		if s.N != nil {
			total += *s.N
			f[s.State] = *s.N
			text += fmt.Sprintf(", %s %s", count(*s.N), s.State)
		}
	}
	if total == looked { // there may be more
		total = max(total, states[0].Live)
	}
	f["rows"] = total
	text = fmt.Sprintf("deliveries has %s%s, in %s; %s came and %s went since statistics began", counted(total, "row"), text, size(states[0].Bytes),
		count(states[0].Inserted), count(states[0].Deleted))
	const remedy = "see lag and dead_letters for whose they are; fastpubsub cleanup_stuck_messages removes what is acked, fastpubsub dlq purge what is dead"
	switch {
	case total >= looked:
		e.add(Warning, remedy, f, "%s", text)
	case total >= e.limits.Deliveries:
		e.add(Notice, remedy, f, "%s", text)
	default:
		e.add(OK, "", f, "%s", text)
	}
	return nil
}

// getOrphans goes from one number of a subscription to the next, not over all rows.
const getOrphans = `
WITH RECURSIVE subs (sub) AS (
    (SELECT d.sub FROM {schema}.deliveries d ORDER BY d.sub LIMIT 1)
    UNION ALL
    SELECT (SELECT d.sub FROM {schema}.deliveries d WHERE d.sub > subs.sub ORDER BY d.sub LIMIT 1)
    FROM subs WHERE subs.sub IS NOT NULL
)
SELECT count(*)::int, coalesce(sum(o.n), 0)::bigint,
       (SELECT count(*) FROM {schema}.held_leases h WHERE NOT EXISTS (SELECT FROM {schema}.subscriptions s WHERE s.num = h.sub))
FROM subs
CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM {schema}.deliveries d WHERE d.sub = subs.sub LIMIT 100000) d) o
WHERE subs.sub IS NOT NULL AND NOT EXISTS (SELECT FROM {schema}.subscriptions s WHERE s.num = subs.sub)`

// checkOrphans looks for what deleted subscriptions have left, but for the log, which goes by the slot.
func (e *examiner) checkOrphans(ctx context.Context) error {
	all, err := indexed[struct {
		Subscriptions      int
		Deliveries, Leases int64
	}](ctx, e, getOrphans)
	if err != nil {
		return err
	}
	o := all[0]
	if o.Subscriptions == 0 && o.Leases == 0 {
		e.add(OK, "", nil, "deleted subscriptions have left nothing")
		return nil
	}
	e.add(Notice, "fastpubsub cleanup_stuck_messages", facts{"subscriptions": o.Subscriptions, "deliveries": o.Deliveries, "held_leases": o.Leases},
		"%s left %s in deliveries, and %s", hasHave(o.Subscriptions, "deleted subscription"), counted(o.Deliveries, "message"), counted(o.Leases, "locked lease"))
	return nil
}
