/* The ring of message slots: rotate, spill, mark and truncate, beside publishers, a subscription, and a reader with an old
 * snapshot.
 *
 * Configurations: none, a subscription that was there before; CREATE, one that transaction 2 creates; READER, with the
 * reader.
 *
 * A transaction publishes one message at most, which has its number. What the subscription has claimed counts as done here:
 * spill.pml has leases, acks and deliveries. That a scan is right in itself is for positions.pml to show; here it is one
 * step. */

#ifndef NX
#define NX 3
#endif
#ifndef NS
#define NS 3
#endif
#include "common.pml"
#include "ring.pml"

byte mark_rows[NS];      /* the rows that the mark's snapshot shows */
byte marked;             /* slots */
byte older;              /* marked slots with a mark that is newer than the reader's snapshot */
#ifdef BROKEN_TRUNCATE_AWAITS_XIDS_ONLY
byte mark_open[NS];
#endif

/* The subscription. */
byte state = 2;          /* 0 not there, 1 not committed, 2 committed */
bool placed = true;      /* it has its cursor */
byte cursor, late;
byte got;                /* claimed, or moved to deliveries */
byte promised = 255;

/* A reader with an old snapshot and without an xid, such as pg_dump: what it has to find in the log. */
bool reading;
byte to_find;

#define to_get (committed & (beyond(cursor) | late))

inline nothing_is_lost() {
	must(!placed || !(committed & wrote & promised & ~(got | (in_log & (beyond(cursor) | late)))), message_lost);
	must(!(placed && (in_log & to_get & got)), handed_out_twice)
}

#include "publisher.pml"

/* create_subscription. What it promises is what commits after it has looked. */
proctype creator(byte x) {
	atomic { draw_xid(x) };
	state = 1; /* its row, and ROW EXCLUSIVE on subscriptions until the end */
	d_step { cursor = next_xid - 1; late = in_progress; placed = true; promised = 255 & ~committed };
	d_step { commit(x) };
	state = 2
}

proctype consumer() {
	byte m;

	do
	:: d_step {
		state == 2 && (in_log & to_get) ->
		m = lowest(in_log & committed & late);
		if
		:: m -> late = late & ~m
		:: else ->
			m = lowest(in_log & committed & beyond(cursor));
			late = late | (in_progress & (m - 1) & beyond(cursor));
			number(m, cursor)
		fi;
		must(!(got & m), handed_out_twice);
		got = got | m; m = 0;
		nothing_is_lost()
	   }
	od
}

proctype reader() {
	do
	:: d_step { !reading -> reading = true; to_find = (state == 2 -> in_log & to_get : 0) }
	:: d_step { reading -> reading = false; to_find = 0; older = 0 }
	od
}

/* No snapshot is older than the mark. */
#ifdef BROKEN_TRUNCATE_WITHOUT_SNAPSHOT_WAIT
#define old_enough(s) true
#else
#ifdef BROKEN_TRUNCATE_AWAITS_XIDS_ONLY
#define old_enough(s) (!(mark_open[s] & in_progress)) /* what pg_snapshot_xmin of a new snapshot tells */
#else
#define old_enough(s) (!has(older, s))
#endif
#endif

/* Whether a snapshot shows nothing in the slot that the subscription is to get. */
#ifdef BROKEN_MARK_WITHOUT_LATE
#define not_needed(s) (state != 2 || !(in_slot[s] & committed & beyond(cursor)))
#else
#define not_needed(s) (state != 2 || !(in_slot[s] & to_get))
#endif

#ifdef BROKEN_MARK_WITH_UNSEEN_SUBSCRIPTION
#define all_seen true
#else
#define all_seen (state != 1) /* SHARE on subscriptions */
#endif

#ifdef TRUNCATE_CURRENT
#define truncatable(s) true
#else
#define truncatable(s) (s != current)
#endif

/* SHARE on the slot. */
#ifdef BROKEN_TRUNCATE_WITHOUT_SHARE
#define unwritten(s) true
#else
#define unwritten(s) (writers[s] == 0)
#endif

#ifdef BROKEN_TRUNCATE_KEEPS_MARK
#define newer_rows(s) false
#else
#define newer_rows(s) (in_slot[s] & committed & ~mark_rows[s])
#endif

inline unmark(s) {
	marked = marked & ~bit(s); mark_rows[s] = 0; older = older & ~bit(s);
#ifdef BROKEN_TRUNCATE_AWAITS_XIDS_ONLY
	mark_open[s] = 0
#endif
}

proctype maintenance() {
	byte s, p, moved, passed, finished;

	do
	:: rotate()
	:: atomic { /* spill: all that lies before the slot's last row goes, whichever slot it is in */
		pick(s);
		if
		:: s != current && state == 2 && (in_slot[s] & to_get) ->
			d_step {
				finished = late & ~in_progress;
				moved = finished & committed & in_log;
				last_of(in_slot[s] & committed & beyond(cursor), p);
				if
				:: p ->
#ifdef BROKEN_SPILL_OWN_SLOT_ONLY
					moved = moved | (in_slot[s] & committed & beyond(cursor));
#else
					moved = moved | (in_log & committed & beyond(cursor) & ~beyond(p));
#endif
#ifndef BROKEN_SPILL_WITHOUT_LATE
					passed = in_progress & beyond(cursor) & ~beyond(p);
#endif
					cursor = p
				:: else
				fi;
#ifdef BROKEN_SPILL_DROPS_OPEN
				finished = late & ~(in_slot[s] & committed) | finished; /* "it has nothing in this slot" */
#endif
				must(!(moved & got), handed_out_twice);
				got = got | moved;
				late = (late & ~finished) | passed;
				nothing_is_lost();
				must(!(in_slot[s] & to_get), slot_stuck);
				p = 0; moved = 0; passed = 0; finished = 0; s = 0
			}
		:: else -> s = 0
		fi
	   }
	:: /* truncate: a look, and the mark if there is none */
		atomic {
			pick(s);
			if
			:: truncatable(s) && in_slot[s] && unwritten(s)
			:: else -> s = 0; goto done /* lock_timeout */
			fi;
			if
			:: has(marked, s) && !newer_rows(s) ->
#ifdef LOOK_ONCE
				skip
#else
				if
				:: not_needed(s)
				:: else -> unmark(s); s = 0; goto done
				fi
#endif
			:: else ->
				if
				:: all_seen && not_needed(s) ->
					unmark(s);
					marked = marked | bit(s); mark_rows[s] = in_slot[s] & committed;
#ifdef BROKEN_TRUNCATE_AWAITS_XIDS_ONLY
					mark_open[s] = in_progress;
#endif
					if
					:: reading -> older = older | bit(s)
					:: else
					fi
				:: all_seen && !not_needed(s) -> unmark(s); s = 0; goto done
				:: else -> s = 0; goto done
				fi
			fi;
#ifndef BROKEN_TRUNCATE_WITHOUT_SHARE
			exclusive = s + 1 /* no writers until it is over */
#endif
		};
		if
		:: d_step {
			old_enough(s) && writers[s] == 0 -> /* ACCESS EXCLUSIVE, and no other look */
			must(!(in_slot[s] & to_find), reader_missed_it);
			in_slot[s] = 0; unmark(s); exclusive = 0; s = 0;
			nothing_is_lost()
		   }
		:: d_step { exclusive = 0; s = 0 } /* an older snapshot, or lock_timeout */
		fi;
done:
		skip
#ifdef BROKEN_SNAPSHOT_HANDED_ON
	/* The reader has its snapshot from another transaction, which has ended. */
	:: d_step { reading -> older = 0 }
#endif
	od
}

init {
	atomic {
#ifdef CREATE
		state = 0; placed = false; promised = 0;
		run publisher(1); run creator(2); run publisher(3);
#else
		i = 1;
		do
		:: i <= NX -> run publisher(i); i++
		:: else -> break
		od;
		i = 0;
#endif
		run consumer(); run maintenance();
#ifdef READER
		run reader()
#endif
	}
}
