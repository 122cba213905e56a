package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/fastpubsub/fastpubsub/internal/crashtest"
)

// line says how it goes.
func (s *soakRun) line(ctx context.Context) string {
	a, c := s.auditor, s.chaos
	return fmt.Sprintf("%v: published %d (rolled back %d, cut off %d), consumed %d, handled %d, acked %d, nacked %d, reprocessed %d, purged %d; "+
		"calls cut off %d; %s; database restarts %d, connections cut %d, processes killed %d and stopped %d, clock jumps %d, "+
		"longest time without an ack %.1f s",
		time.Since(s.begun).Round(time.Second), a.Counted[crashtest.Publish], a.Undone, a.Unsure, a.Counted[crashtest.Consume],
		a.Counted[crashtest.Handle], a.Counted[crashtest.Ack], a.Counted[crashtest.Nack], a.Counted[crashtest.Reprocess], a.Counted[crashtest.Purge],
		a.Cut, s.sizes(ctx), c.restarts.Load(), c.cuts.Load(), c.kills.Load(), c.stops.Load(), c.jumps.Load(),
		float64(s.longest)/1000)
}

// sizes are those of the tables, with indexes and what is stored out of line.
func (s *soakRun) sizes(ctx context.Context) string {
	const query = `
SELECT coalesce(sum(pg_total_relation_size(c.oid)) FILTER (WHERE c.relname ~ '^messages_'), 0) / 1048576.0,
       coalesce(sum(pg_total_relation_size(c.oid)) FILTER (WHERE c.relname ~ '^(leases|cursors)_'), 0) / 1048576.0,
       coalesce(sum(pg_total_relation_size(c.oid)) FILTER (WHERE c.relname = 'deliveries'), 0) / 1048576.0,
       (SELECT last_value FROM {schema}.message_slot), (SELECT last_value FROM {schema}.lease_slot)
FROM pg_class c WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r'`
	var messages, leases, deliveries float64
	var messageSlots, leaseSlots int
	err := s.db.Pool.QueryRow(ctx, s.db.SQL(query), s.db.Schema).Scan(&messages, &leases, &deliveries, &messageSlots, &leaseSlots)
	if err != nil {
		return "tables not seen, the database is away"
	}
	return fmt.Sprintf("MiB of messages %.1f, of leases %.1f, of deliveries %.1f, slots left %d of messages and %d of leases",
		messages, leases, deliveries, messageSlots, leaseSlots)
}

// A report is the verdict.
type report struct {
	config
	took          time.Duration
	path          string
	line          string
	auditor       *crashtest.Auditor
	subscriptions []subscriptionReport
	problems      []string // that are no message's
}

type subscriptionReport struct {
	name             string
	all, dead, acked int
}

func (r *report) violated() bool {
	violations, _ := r.auditor.Violations()
	return len(violations)+len(r.problems) > 0
}

// How many broken promises are shown, and how many offending messages with all that the ledger has about them.
const (
	shown     = 100
	historyOf = 10
)

func (r *report) print(w io.Writer) {
	fmt.Fprintln(w, r.line)
	slices.SortFunc(r.subscriptions, func(a, b subscriptionReport) int { return strings.Compare(a.name, b.name) })
	for _, s := range r.subscriptions {
		fmt.Fprintf(w, "%s: %d messages, %d acked, %d dead letters\n", s.name, s.all, s.acked, s.dead)
	}
	violations, more := r.auditor.Violations()
	if !r.violated() {
		fmt.Fprintf(w, "PASSED: seed %d, %v: every message is accounted for\n", r.seed, r.took.Round(time.Second))
		return
	}
	for _, p := range r.problems {
		fmt.Fprintln(w, "broken:", p)
	}
	for _, v := range violations[:min(len(violations), shown)] {
		fmt.Fprintln(w, "broken:", v)
	}
	if n := len(violations) - shown + more; n > 0 {
		fmt.Fprintln(w, "and", n, "more")
	}
	r.printHistory(w, violations)
	fmt.Fprintf(w, "FAILED: seed %d, %v: %d promises broken; ledger %s, and the server's log beside it\n", r.seed,
		r.took.Round(time.Second), len(violations)+more+len(r.problems), r.path)
}

// printHistory prints what the ledger has about offending messages.
func (r *report) printHistory(w io.Writer, violations []crashtest.Violation) {
	type offender struct {
		sub string
		n   int
	}
	lines := map[offender][]string{}
	var offenders []offender
	for _, v := range violations {
		o := offender{v.Subscription, v.N}
		if _, ok := lines[o]; !ok && v.N != 0 && len(offenders) < historyOf {
			lines[o] = nil
			offenders = append(offenders, o)
		}
	}
	if len(offenders) == 0 {
		return
	}
	reader, err := crashtest.OpenReader(r.path)
	if err != nil {
		fmt.Fprintln(w, err)
		return
	}
	defer reader.Close()
	err = reader.Each(func(e crashtest.Entry) {
		for _, o := range offenders {
			of := e.Call == crashtest.Crash || e.Subscription == o.sub && (e.Call == crashtest.Subscribe || e.Call == crashtest.Unsubscribe)
			attempts := 0
			for _, m := range e.Messages {
				if m.N == o.n && (e.Topic != "" || o.sub == "" || e.Subscription == o.sub) {
					of, attempts = true, m.Attempts
				}
			}
			if of {
				lines[o] = append(lines[o], describeEntry(e, attempts))
			}
		}
	})
	if err != nil {
		fmt.Fprintln(w, err)
	}
	for _, o := range offenders {
		fmt.Fprintf(w, "message %d, %s:\n", o.n, o.sub)
		for _, line := range lines[o] {
			fmt.Fprintln(w, "\t"+line)
		}
	}
}

func describeEntry(e crashtest.Entry, attempts int) string {
	text := time.UnixMilli(e.At).UTC().Format("15:04:05.000 ") + e.Caller
	if e.Caller != "" {
		text += ": "
	}
	text += string(e.Call)
	switch {
	case e.Undone:
		text += " did nothing"
	case e.Ended && e.Call == crashtest.Crash:
		text += " is over"
	case e.Ended:
		text += fmt.Sprintf(" ends, %d of %d messages", e.Count, len(e.Messages))
	default:
		text += " begins"
	}
	if attempts > 0 {
		text += fmt.Sprintf(", attempt %d", attempts)
	}
	if e.Subscription != "" {
		text += ", " + e.Subscription
	}
	return text
}
