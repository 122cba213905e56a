/* The ring of lease slots, which hold cursor rows and leases: rotate, copy forward, mark and truncate, beside claims, sweeps,
 * acks, the creation of the subscription, and a reader with an old snapshot.
 *
 * Configurations: none, two consumers; ACKS, one consumer, and acks; READER, one consumer, and the reader.
 *
 * One subscription. A claim takes one message, whose number is its position; all are committed. Of what a sweep moves to
 * deliveries no more is seen here. */

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
byte writers[NS];          /* processes that hold ROW EXCLUSIVE on a slot: they have inserted there, or acked */
byte exclusive;            /* 1 + the slot that truncate holds ACCESS EXCLUSIVE on */
bool exists;               /* the subscription */
byte locked;               /* the advisory lock: who has it */

/* Leases, by message. */
byte lease_slot[NM];       /* 1 + slot; 0: there is none */
byte remaining;            /* nobody has acked it */
byte swept;                /* the pointer has moved past it */
byte held;                 /* but its row was locked */
byte row_locked;

byte moved;                /* in deliveries */
#ifdef BROKEN_TRUNCATE_WITHOUT_LOCK
byte wiped;                /* processes whose uncommitted rows are gone */
#endif

/* For the properties. */
byte handed, acked_ever;

bool reading;
byte to_find;              /* slots that the reader needs */
byte marked, older;        /* slots; see slots.pml */
byte changed;              /* slots that got a row since their mark */

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
	gen[s] = 3; changed = changed | bit(s)
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

/* One transaction under the subscription's lock: a claim, which may sweep; or what copies the cursor forward. */
inline changing(me, copy) {
#ifdef BROKEN_SLOT_READ_BEFORE_LOCK
	slot = current;
#endif
#ifdef BROKEN_COPY_WITHOUT_LOCK
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
		at = 0
	};
	if
	:: copy || c < NM ->
		atomic { exclusive != slot + 1 -> writers[slot] = writers[slot] | bit(me) };
		/* It may take any time until it commits. */
		if
		:: !copy -> sweeps = true
		:: sweeps = false
		fi;
		d_step {
			if
			:: sweeps ->
				i = 0;
				do
				:: i < NM ->
					if
					:: lease_slot[i] && (!has(swept, i) || has(held, i)) ->
						if
						:: has(row_locked, i) -> held = held | bit(i)
						:: else ->
							held = held & ~bit(i);
							a = a + has(acked_ever, i);
							moved = moved | (remaining & bit(i));
							remaining = remaining & ~bit(i)
						fi;
						swept = swept | bit(i)
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
#ifdef BROKEN_TRUNCATE_WITHOUT_LOCK
			if
			:: has(wiped, me) -> wiped = wiped & ~bit(me)
			:: else -> append(slot); cursor[slot] = c; swept_acked[slot] = a
			fi;
#else
			append(slot); cursor[slot] = c; swept_acked[slot] = a;
#endif
			writers[slot] = writers[slot] & ~bit(me);
			check();
			if :: locked == me -> locked = 0 :: else fi;
			slot = 0; c = 0; a = 0; sweeps = false
		}
	:: else -> d_step { locked = 0; slot = 0; c = 0; a = 0 }
	fi
}

proctype consumer(byte me) {
	byte slot, at, c, a;
	bool sweeps;

	exists;
	do
	:: changing(me, false)
	od
}

/* Acks one message, in a transaction of some length. */
proctype acker(byte me) {
	byte m;

	do
	:: atomic {
		if
		:: has(remaining, 0) && exclusive != lease_slot[0] -> m = 0
		:: has(remaining, NM - 1) && exclusive != lease_slot[NM - 1] -> m = NM - 1
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

/* create_subscription: the slot is read, the row written later, and committed later still. */
proctype creator(byte me) {
	byte slot;

	slot = current;
	atomic { exclusive != slot + 1 -> writers[slot] = writers[slot] | bit(me) };
	d_step {
		append(slot); exists = true;
		writers[slot] = writers[slot] & ~bit(me); slot = 0
	}
}

#if NM == 1
#define leases_in(s) (lease_slot[0] == (s) + 1 -> 1 : 0)
#else
#define leases_in(s) ((lease_slot[0] == (s) + 1 -> 1 : 0) | (lease_slot[1] == (s) + 1 -> 2 : 0))
#endif

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
#ifdef BROKEN_TRUNCATE_NEWEST_CURSOR
#define newest_in(s) false
#else
#define newest_in(s) (gen[s] && gen[s] > gen[after(s)] && gen[s] > gen[before(s)])
#endif
/* Whether a snapshot shows nothing in the slot that is needed. */
#define not_needed(s) (!newest_in(s) && !open_leases(s) && !unswept(s) && !held_in(s))

#ifdef BROKEN_TRUNCATE_WITHOUT_SNAPSHOT_WAIT
#define old_enough(s) true
#else
#define old_enough(s) (!has(older, s))
#endif
#ifdef BROKEN_TRUNCATE_WITHOUT_LOCK
#define unlocked(s) true
#else
#define unlocked(s) (writers[s] == 0 && !(row_locked & leases_in(s)))
#endif
#ifdef BROKEN_TRUNCATE_KEEPS_MARK
#define as_marked(s) not_needed(s)
#else
#ifdef BROKEN_TRUNCATE_WITHOUT_RECHECK
#define as_marked(s) true
#else
#define as_marked(s) (!has(changed, s))
#endif
#endif

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

proctype maintenance(byte me) {
	byte slot, at, c, a, s;
	bool sweeps;

	do
#ifdef BROKEN_ROTATE_WITHOUT_LOCK
	:: atomic {
		s = (current + 1) % NS;
		if
		:: gen[s] == 0 && !leases_in(s)
		:: else -> s = 9
		fi
	   };
		if
		:: s != 9 -> current = s
		:: else
		fi;
		s = 0
#else
	:: atomic { /* rotate: SHARE on the next slot, so that nobody has a row there that this does not see */
		s = (current + 1) % NS;
		if
#ifdef BROKEN_ROTATE_INTO_ANY
		:: true -> current = s
#else
		:: writers[s] == 0 && gen[s] == 0 && !leases_in(s) -> current = s
#endif
		:: else
		fi;
		s = 0
	   }
#endif
	:: exists -> /* copy forward, where the newest row is in a slot that is not the current one */
		d_step { find_newest(s); s = (s != current -> 1 : 0) };
		if
		:: s -> s = 0; changing(me, true)
		:: else
		fi
	:: atomic { /* mark */
		if :: s = 0 :: s = 1 :: s = 2 fi;
		if
		:: s != current && !has(marked, s) && not_needed(s) -> /* rows of other subscriptions may be in it, so it need have none of this one */
			marked = marked | bit(s); changed = changed & ~bit(s);
			if
			:: reading -> older = older | bit(s)
			:: else
			fi
		:: else
		fi;
		s = 0
	   }
	:: /* truncate */
		atomic {
			if :: s = 0 :: s = 1 :: s = 2 fi;
			if
			:: has(marked, s) && old_enough(s) && unlocked(s) -> exclusive = s + 1
			:: else -> s = 0; goto done
			fi
		};
		d_step {
			if
			:: as_marked(s) ->
				must(!has(to_find, s), reader_missed_it);
#ifdef BROKEN_TRUNCATE_WITHOUT_LOCK
				wiped = wiped | writers[s];
#endif
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
				i = 0
			:: else
			fi;
			marked = marked & ~bit(s); changed = changed & ~bit(s); older = older & ~bit(s);
			check();
			exclusive = 0; s = 0
		};
done:
		skip
#ifdef BROKEN_ROTATE_BY_NEXTVAL
	:: d_step { current = (current + 1) % NS } /* a crash: a sequence that nextval moved is ahead afterwards */
#endif
	od
}

init {
	atomic {
		run creator(1); run consumer(2); run maintenance(5);
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
