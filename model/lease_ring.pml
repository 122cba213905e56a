/* The ring of lease slots, which hold cursor rows and leases: rotate, vacate, mark and truncate, beside claims, sweeps, acks,
 * the creation of the subscription, and a reader with an old snapshot.
 *
 * Configurations: none, two consumers; ACKS, one consumer, and acks; READER, one consumer, and the reader; CUT_OFF, a
 * rotation may end halfway.
 *
 * One subscription, beside others of which no more is seen than that they have written to a slot. A claim takes one message,
 * whose number is its position; all are committed. Of what a sweep or vacate moves to deliveries no more is seen here. */

#ifndef NM
#define NM 2
#endif
#define NS 3
#define NX 1
#include "common.pml"

byte current;              /* the current slot: a sequence, no matter of snapshots */
byte gen[NS];              /* the newest committed cursor row in a slot: 0, there is none; 3, it is the newest of all; else in order */
byte cursor[NS];           /* what that row says: the next message, */
byte swept_acked[NS];      /* and how many were acked in leases that were swept */
byte writers[NS];          /* processes that hold ROW EXCLUSIVE on a slot, because they have inserted there */
byte used;                 /* slots whose files are not empty */
bool creating;             /* somebody holds ROW EXCLUSIVE on subscriptions */
bool exists;               /* the subscription */
byte locked;               /* the advisory lock: who has it */
byte noted;                /* slots that were left, and where it is noted that he may still write there */
#ifdef CUT_OFF
byte left;                 /* slots that were left, and where nothing was noted */
#endif

/* Leases, by message. */
byte lease_slot[NM];       /* 1 + slot; 0: there is none */
byte remaining;            /* nobody has acked it */
byte swept;                /* the pointer has moved past it */
byte held;                 /* but its row was locked */
byte row_locked;

byte moved;                /* in deliveries */

/* For the properties. */
byte handed, acked_ever;

bool reading;
byte to_find;              /* slots that the reader needs */
byte marked, older;        /* slots; see slots.pml */

/* s = the slot with the newest cursor row */
inline find_newest(s) {
	s = 0; i = 1;
	do
	:: i < NS ->
		if
		:: gen[i] > gen[s] -> s = i
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0
}

/* A committed cursor row in slot s, which is then the newest. */
#define after(s)  ((s + 1) % NS)
#define before(s) ((s + 2) % NS)
inline append(s) {
	if
	:: gen[after(s)] && gen[before(s)] ->
		if
		:: gen[after(s)] > gen[before(s)] -> gen[after(s)] = 2; gen[before(s)] = 1
		:: else -> gen[after(s)] = 1; gen[before(s)] = 2
		fi
	:: else ->
		gen[after(s)] = (gen[after(s)] -> 1 : 0); gen[before(s)] = (gen[before(s)] -> 1 : 0)
	fi;
	gen[s] = 3
}

inline check() {
	byte n, total;

	find_newest(n);
	must(!exists || gen[n] == 3, stale_cursor);
	total = swept_acked[n]; j = 0;
	do
	:: j < NM ->
		must(!has(handed, j) || j < cursor[n], stale_cursor);
		must(!exists || j >= cursor[n] || has(remaining | moved | acked_ever, j), message_lost);
		must(!has(remaining, j) || lease_slot[j], message_lost);
		must(!has(remaining, j) || !has(swept, j) || has(held, j), message_lost);
		total = total - has(acked_ever, j) +
			(lease_slot[j] && !has(remaining, j) && (!has(swept, j) || has(held, j)) -> has(acked_ever, j) : 0);
		j++
	:: else -> break
	od;
	must(total == 0, count_wrong);
	j = 0; n = 0; total = 0
}

#if NM == 1
#define leases_in(s) (lease_slot[0] == (s) + 1 -> 1 : 0)
#else
#define leases_in(s) ((lease_slot[0] == (s) + 1 -> 1 : 0) | (lease_slot[1] == (s) + 1 -> 2 : 0))
#endif

#define write(me) writers[slot] = writers[slot] | bit(me); used = used | bit(slot)

/* A transaction has ended, and its locks go. */
inline ended(me) {
	writers[slot] = writers[slot] & ~bit(me); slot = 0;
	if :: locked == me -> locked = 0; noted = 0 :: else fi
}

/* One transaction under the subscription's lock: a claim, which may sweep; or vacate, of slot v. */
inline changing(me, copy, v) {
#ifdef BROKEN_SLOT_READ_BEFORE_LOCK
	slot = current;
#endif
#ifdef BROKEN_VACATE_WITHOUT_LOCK
	if
	:: !copy -> atomic { locked == 0 -> locked = me }
	:: copy
	fi;
#else
	atomic { locked == 0 -> locked = me };
#endif
#ifndef BROKEN_SLOT_READ_BEFORE_LOCK
	slot = current;
#endif
	d_step { /* the newest row of the current slot; only if there is none, of all */
		at = slot;
		if
		:: gen[at] == 0 -> find_newest(at)
		:: else
		fi;
		must(gen[at] == 3, stale_cursor);
		c = cursor[at]; a = swept_acked[at];
		copies = copy && at == v;
		at = 0
	};
	if
	:: copies || copy && (leases_in(v) & ~swept) || !copy && c < NM ->
		d_step { write(me) };
		/* It may take any time until it commits. */
		if
		:: !copy -> sweeps = true
		:: sweeps = false
		fi;
		if
		:: d_step {
			if
			:: copy || sweeps ->
				i = 0;
				do
				:: i < NM ->
					if
					:: (copy -> lease_slot[i] == v + 1 && !has(swept, i) && !has(row_locked, i) :
						lease_slot[i] && (!has(swept, i) || has(held, i))) ->
						if
						:: has(row_locked, i) -> held = held | bit(i)
						:: else ->
							held = held & ~bit(i);
							a = a + has(acked_ever, i);
							moved = moved | (remaining & bit(i));
							remaining = remaining & ~bit(i)
						fi;
						swept = swept | bit(i) /* by vacate: its deadline is -infinity */
					:: else
					fi;
					i++
				:: else -> break
				od;
				i = 0
			:: else
			fi;
			if
			:: !copy && c < NM ->
				must(!has(handed, c), handed_out_twice);
				handed = handed | bit(c); lease_slot[c] = slot + 1; remaining = remaining | bit(c);
				c++
			:: else
			fi;
			append(slot); cursor[slot] = c; swept_acked[slot] = a;
			ended(me);
			check();
			c = 0; a = 0; sweeps = false; copies = false
		   }
		:: d_step { ended(me); c = 0; a = 0; sweeps = false; copies = false } /* rolled back; the files have grown */
		fi
	:: else -> d_step { ended(me); c = 0; a = 0 }
	fi
}

proctype consumer(byte me) {
	byte slot, at, c, a;
	bool sweeps, copies;

	exists;
	do
	:: changing(me, false, 0)
	od
}

/* Acks one message, in a transaction of some length. */
proctype acker(byte me) {
	byte m;

	do
	:: atomic {
		if
		:: has(remaining, 0) -> m = 0
		:: has(remaining, NM - 1) -> m = NM - 1
		fi;
		row_locked = row_locked | bit(m)
	   };
		if
		:: d_step { remaining = remaining & ~bit(m); acked_ever = acked_ever | bit(m); check() }
		:: true /* rolled back */
		fi;
		d_step { row_locked = row_locked & ~bit(m); m = 0 }
	od
}

/* create_subscription: a row in subscriptions, the lock, the slot is read, the cursor row is written later, and all committed
 * later still. */
proctype creator(byte me) {
	byte slot;

	creating = true;
#ifndef CREATED_WITHOUT_LOCK
	atomic { locked == 0 -> locked = me };
#endif
	slot = current;
	d_step { write(me) };
	d_step { append(slot); exists = true; creating = false; ended(me) }
}

#ifdef BROKEN_TRUNCATE_OPEN_LEASES
#define BROKEN_TRUNCATE_UNSWEPT
#define BROKEN_TRUNCATE_HELD
#define open_leases(s) 0
#else
#define open_leases(s) (leases_in(s) & remaining) /* these are unswept or held in any case */
#endif
#ifdef BROKEN_TRUNCATE_UNSWEPT
#define unswept(s) 0
#else
#define unswept(s) (leases_in(s) & ~swept)
#endif
#ifdef BROKEN_TRUNCATE_HELD
#define held_in(s) 0
#else
#define held_in(s) (leases_in(s) & held)
#endif
#define newest_is_in(s) (gen[s] && gen[s] > gen[after(s)] && gen[s] > gen[before(s)])
#ifdef BROKEN_TRUNCATE_NEWEST_CURSOR
#define newest_in(s) false
#else
#define newest_in(s) newest_is_in(s)
#endif
/* Whether a snapshot shows nothing in the slot that is needed. */
#define not_needed(s) (!newest_in(s) && !open_leases(s) && !unswept(s) && !held_in(s))

#ifdef BROKEN_TRUNCATE_WITHOUT_SNAPSHOT_WAIT
#define old_enough(s) true
#else
#define old_enough(s) (!has(older, s))
#endif
#define unlocked(s) (writers[s] == 0 && !(row_locked & leases_in(s)))
#ifdef CREATED_IN_SIGHT
#define all_seen true
#else
#define all_seen (!creating) /* SHARE on subscriptions */
#endif
#ifdef BROKEN_STRAYS_NOT_AWAITED
#define no_strays(s) true
#else
#define no_strays(s) (!has(noted, s))
#endif
#ifdef BROKEN_ROTATE_INTO_ANY
#define is_empty(s) true
#else
#ifdef BROKEN_ROTATE_BY_ROWS
#define is_empty(s) (gen[s] == 0 && !leases_in(s))
#else
#define is_empty(s) (!has(used, s))
#endif
#endif
#ifdef BROKEN_LEAVE_EMPTY
#define may_leave true
#else
#define may_leave has(used, current)
#endif

/* Who has the lock may have read that s is the current slot. */
inline note(s) {
	if :: locked -> noted = noted | bit(s) :: else fi
}

proctype reader() {
	byte n;

	do
	:: d_step {
		!reading && exists -> reading = true;
		find_newest(n);
		to_find = bit(n); n = 0;
		do
		:: i < NM ->
			if
			:: has(remaining, i) -> to_find = to_find | bit(lease_slot[i] - 1)
			:: else
			fi;
			i++
		:: else -> break
		od;
		i = 0
	   }
	:: d_step { reading -> reading = false; to_find = 0; older = 0 }
	od
}

/* Maintenance works under a lock of its own: one of these steps at a time. */
proctype maintenance() {
	byte s;

	do
	:: used = used | bit(current) /* other subscriptions */
	:: /* rotate */
		atomic {
			may_leave && is_empty((current + 1) % NS) -> s = current;
#ifdef BROKEN_NOTED_BEFORE_SETVAL
			note(s)
#endif
		};
		current = (s + 1) % NS;
		if
#ifndef BROKEN_NOTED_BEFORE_SETVAL
		:: d_step { note(s); s = 0 }
#else
		:: s = 0
#endif
#ifdef CUT_OFF
		:: d_step { left = left | bit(s); s = 0 } /* rolled back, but for the sequence */
#endif
		fi
	:: /* truncate: first the look, and the mark if there is none */
		atomic {
			if :: s = 0 :: s = 1 :: s = 2 fi;
			if
			:: s == current || !has(used, s) -> s = 0; goto done
			:: else
			fi;
#if defined(CUT_OFF) && !defined(BROKEN_CUT_OFF_NOT_NOTED)
			if
			:: has(left, s) -> left = left & ~bit(s); note(s)
			:: else
			fi;
#endif
			if
			:: has(marked, s) ->
#ifdef LOOK_ONCE
				skip
#else
				if
				:: not_needed(s)
				:: else -> marked = marked & ~bit(s); older = older & ~bit(s); s = 0; goto done
				fi
#endif
			:: else ->
				if
				:: no_strays(s) && all_seen && not_needed(s) ->
					marked = marked | bit(s);
					if
					:: reading -> older = older | bit(s)
					:: else
					fi
				:: else -> s = 0; goto done
				fi
			fi
		};
		/* ACCESS EXCLUSIVE, for which it waits for those who have written there, and no other look */
		if
		:: d_step {
#ifdef TRUNCATE_WITHOUT_LOCK
			old_enough(s) -> /* nobody has one then */
			must(unlocked(s), stale_cursor);
#else
			old_enough(s) && unlocked(s) ->
#endif
			must(!has(to_find, s), reader_missed_it);
			gen[s] = 0; cursor[s] = 0; swept_acked[s] = 0;
			do
			:: i < NM ->
				if
				:: lease_slot[i] == s + 1 -> lease_slot[i] = 0; swept = swept & ~bit(i); held = held & ~bit(i)
				:: else
				fi;
				i++
			:: else -> break
			od;
			i = 0;
			used = used & ~bit(s); marked = marked & ~bit(s); older = older & ~bit(s); s = 0;
			check()
		   }
		:: s = 0 /* an older snapshot, or lock_timeout */
		fi;
done:
		skip
#ifdef BROKEN_ROTATE_BY_NEXTVAL
	/* A crash: a sequence that nextval moved is ahead afterwards. */
	:: d_step { locked == 0 && !creating -> current = (current + 1) % NS }
#endif
#ifdef BROKEN_PREPARED
	/* Somebody has prepared it, and the server has been restarted: it has another virtual id from then on. */
	:: d_step { (writers[0] | writers[1] | writers[2]) & bit(locked) -> noted = 0 }
#endif
	od
}

/* vacate, with any slot but the current one */
proctype vacater(byte me) {
	byte slot, at, c, a, v;
	bool sweeps, copies;

	exists;
	do
	:: atomic {
		if :: v = 0 :: v = 1 :: v = 2 fi;
		v != current && (newest_is_in(v) || (leases_in(v) & ~swept))
	   };
		changing(me, true, v);
		v = 0
	od
}

init {
	atomic {
		run creator(1); run consumer(2); run maintenance();
#ifdef BROKEN_MAINTENANCE_WITHOUT_LOCK
		run maintenance();
#endif
		run vacater(5);
#ifdef READER
		run reader()
#else
#ifdef ACKS
		run acker(4)
#else
		run consumer(3)
#endif
#endif
	}
}
