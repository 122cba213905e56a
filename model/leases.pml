/* One subscription's leases and deliveries: claim with sweep, ack, nack, extend, give back, expiry, redelivery, dead letters.
 *
 * Configurations: none; CRASH, the server crashes once and forgets what was not flushed; CLOCK, the clock steps back once;
 * SPILL, the messages' slot is spilled and truncated; MOVES, one of the two consumers does not ack, but nacks, extends and
 * gives back.
 *
 * All messages are committed and their positions are their numbers. There are two
 * consumers. */

#ifndef NM
#define NM 2              /* messages */
#endif
#ifndef T
#define T 2               /* the clock goes from 0 to T */
#endif
#ifndef MAX_ATTEMPTS
#define MAX_ATTEMPTS 2
#endif
#define NX 1
#include "common.pml"

#define NOWHERE   0       /* not in deliveries */
#define AVAILABLE 1
#define EXPIRED   2
#define LEASED    3
#define ACKED     4
#define DEAD      5

/* What the server has, and what of it has been flushed. A lease has the number of its first message. */
typedef Database {
	byte cursor;           /* the next message */
	byte swept_to;
	byte acked;            /* the total of all leases that were swept */
	byte deadline[NM];     /* of leases; 0: there is none */
	byte remaining[NM];
	byte lease_acked[NM];
	byte held;             /* leases that were locked when they were to be swept */
	byte state[NM];        /* deliveries */
	byte next_at[NM];
	byte attempts[NM];
};
Database db;
#ifdef CRASH
Database flushed;
bool crashed;
byte transactions;        /* how many are open */
#define begun() transactions++
#define ended() transactions--
#else
#define begun() skip
#define ended() skip
#endif

bool locked;              /* the advisory lock */
byte lock[NM];            /* who has a lease's row locked, 0 nobody */
byte d_lock[NM];          /* the same of deliveries */

byte clock;
bool stepped_back;
bool dropped;             /* the slot of the messages has been truncated */

/* For the properties. */
byte acked_in_lease;      /* messages */
byte acked_ever;
byte holder[NM];          /* who was given the message last and has not returned it */
byte holds_until[NM];

#define now (clock > db.swept_to -> clock : db.swept_to)

/* Where nothing that it read can have changed when it writes, a spill is one step. */
#if defined(BROKEN_SPILL_WITHOUT_LOCK) || defined(BROKEN_SPILL_STALE_LEASES)
#define SPILL_IN_TWO_STEPS
#define not_had from
#else
#define not_had db.cursor
#endif

#ifdef BROKEN_NACK_OF_ANY_ATTEMPT
#define same_attempt(m) true
#else
#define same_attempt(m) (db.attempts[m] == attempt[m])
#endif

inline check() {
	i = 0;
	byte places, total;
	total = db.acked;
	do
	:: i < NM ->
		places = (i >= db.cursor -> 1 : 0) + (db.state[i] != NOWHERE -> 1 : 0) + has(acked_in_lease, i);
		j = 0;
		do
		:: j < NM -> places = places + has(db.remaining[j], i); j++
		:: else -> break
		od;
		must(places > 0, message_lost);
		must(places < 2, handed_out_twice);
		must(db.attempts[i] <= MAX_ATTEMPTS, too_many_attempts);
		must(db.remaining[i] == 0 || db.deadline[i] > db.swept_to || has(db.held, i), message_lost); /* nobody looks again */
		must(!(dropped && (db.remaining[i] || i >= db.cursor)), payload_missing);
		if
		:: db.state[i] == ACKED -> total++
		:: else
		fi;
		if
		:: db.deadline[i] > db.swept_to || has(db.held, i) -> total = total + db.lease_acked[i]
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0;
	do
	:: i < NM -> total = total - has(acked_ever, i); i++
	:: else -> break
	od;
	must(total == 0, count_wrong);
	i = 0; j = 0; places = 0; total = 0
}

inline flush() {
#ifdef CRASH
	i = 0;
	flushed.cursor = db.cursor; flushed.swept_to = db.swept_to; flushed.acked = db.acked; flushed.held = db.held;
	do
	:: i < NM ->
		flushed.deadline[i] = db.deadline[i]; flushed.remaining[i] = db.remaining[i];
		flushed.lease_acked[i] = db.lease_acked[i]; flushed.state[i] = db.state[i];
		flushed.next_at[i] = db.next_at[i]; flushed.attempts[i] = db.attempts[i];
		i++
	:: else -> break
	od;
	i = 0
#endif
	skip
}

inline hand_out(m) {
	must(!has(acked_ever, m), handed_out_twice);
	must(holder[m] == 0 || holds_until[m] <= t, handed_out_twice);
	holder[m] = me; holds_until[m] = t + 1;
	mine = mine | bit(m); attempt[m] = db.attempts[m]
}

/* A message that an action took from its holder. */
inline taken(m) {
#ifdef CRASH
	/* A claim that a crash forgot is made again, and is the first attempt again: who made the first can nack the second. */
	must(crashed || holder[m] == me || holder[m] == 0 || holds_until[m] <= now, taken_from_its_holder);
#else
	must(holder[m] == me || holder[m] == 0 || holds_until[m] <= now, taken_from_its_holder);
#endif
	holder[m] = 0; holds_until[m] = 0
}

/* With MOVES, one consumer acks, and the other nacks, extends and gives back. Else both ack. */
#ifdef MOVES
#define may_ack  (me == 1)
#define may_move (me == 2)
#else
#define may_ack  true
#define may_move false
#endif

proctype consumer(byte me) {
	byte mine;               /* what it believes it has */
	byte attempt[NM];
	byte t, want, due, m, counted;
	byte wanted, old[NM], pending[NM], d_pending;
	byte k;
	byte act, from_log;

end:	do
	:: mine == 0 -> /* claim */
		atomic { !locked -> locked = true; begun() };
		d_step {
			t = now;
			i = 0; due = 0;
			do
			:: i < NM ->
				if
				:: db.deadline[i] > db.swept_to && db.deadline[i] <= t ->
					if
#ifdef BROKEN_SWEEP_COUNTS_EARLY
					:: true -> counted = counted + db.lease_acked[i]; if :: db.remaining[i] -> due = due | bit(i) :: else fi
#else
					:: db.remaining[i] == 0 -> counted = counted + db.lease_acked[i] /* it cannot change any more */
#endif
					:: else -> due = due | bit(i)
					fi
				:: else
				fi;
				i++
			:: else -> break
			od;
			i = 0
		};
		if
		:: want = 1
		:: want = NM
		fi;
		d_step {
			due = due | db.held;
			do
			:: i < NM ->
				if
				:: !has(due, i) -> skip
#ifdef BROKEN_SWEEP_TAKES_LOCKED
				:: else ->
#else
				:: has(due, i) && lock[i] -> /* SKIP LOCKED */
#ifndef BROKEN_SWEEP_FORGETS_HELD
					db.held = db.held | bit(i);
#endif
					skip
				:: has(due, i) && !lock[i] ->
#endif
					db.held = db.held & ~bit(i);
#ifndef BROKEN_SWEEP_COUNTS_EARLY
					db.acked = db.acked + db.lease_acked[i];
#endif
					must(!dropped || !db.remaining[i], payload_missing);
					j = 0;
					do
					:: j < NM ->
						if
						:: has(db.remaining[i], j) ->
							db.state[j] = (MAX_ATTEMPTS > 1 -> EXPIRED : DEAD); db.next_at[j] = t; db.attempts[j] = 1
						:: else
						fi;
						j++
					:: else -> break
					od;
					db.remaining[i] = 0
				fi;
				i++
			:: else -> break
			od;
			db.swept_to = t; db.acked = db.acked + counted; counted = 0;
			/* claim_due */
			i = 0;
			do
			:: i < NM ->
				if
				:: want && d_lock[i] == 0 &&
				   (db.state[i] == AVAILABLE || db.state[i] == EXPIRED || (db.state[i] == LEASED && db.next_at[i] <= t)) ->
					if
#ifndef BROKEN_NO_LIMIT_OF_ATTEMPTS
					:: db.attempts[i] >= MAX_ATTEMPTS -> db.state[i] = DEAD
#endif
					:: else ->
						db.state[i] = LEASED; db.attempts[i] = db.attempts[i] + 1; db.next_at[i] = t + 1;
						hand_out(i); want--
					fi
				:: else
				fi;
				i++
			:: else -> break
			od;
			/* the main scan */
			if
			:: want && db.cursor < NM ->
				m = db.cursor;
#ifdef BROKEN_DEADLINE_BY_CLOCK
				db.deadline[m] = clock + 1;
#else
				db.deadline[m] = t + 1;
#endif
				do
				:: want && db.cursor < NM ->
					db.remaining[m] = db.remaining[m] | bit(db.cursor);
					hand_out(db.cursor); attempt[db.cursor] = 1; from_log = from_log | bit(db.cursor);
					db.cursor++; want--
				:: else -> break
				od
			:: else
			fi;
			check();
			i = 0; j = 0; t = 0; want = 0; due = 0; m = 0; locked = false; ended()
		};
#ifdef SPILL
		d_step { /* claimed(): what it still has, it can read */
			do
			:: i < NM ->
#ifdef BROKEN_READ_LOG_ONLY
				must(!has(mine & from_log, i) || holder[i] != me || !dropped, payload_missing);
#else
				must(!has(mine & from_log, i) || holder[i] != me || !dropped || db.state[i] != NOWHERE, payload_missing);
#endif
				i++
			:: else -> break
			od;
			i = 0; from_log = 0
		}
#else
		from_log = 0
#endif

	:: may_ack && mine -> /* ack one, or all, in a transaction that may be rolled back */
		if
		:: wanted = mine
		:: wanted = mine & (256 - mine)
		fi;
		d_step {
			begun();
			i = 0;
			do
			:: i < NM -> old[i] = db.remaining[i]; i++
			:: else -> break
			od;
			i = 0
		};
#ifdef BROKEN_ACK_DELIVERIES_FIRST
		k = 1;
		goto deliveries;
leases:
#endif
		atomic {
			k = 0;
			do
			:: k < NM && (old[k] & wanted & ~d_pending) ->
				lock[k] == 0 ->
#ifdef BROKEN_ACK_WITHOUT_CAS
				lock[k] = me; pending[k] = old[k] & wanted; k++
#else
				if
				:: db.remaining[k] == old[k] -> lock[k] = me; pending[k] = old[k] & wanted & ~d_pending; k++
				:: else -> old[k] = db.remaining[k]
				fi
#endif
			:: k < NM && !(old[k] & wanted & ~d_pending) -> k++
			:: else -> break
			od
		};
#ifdef BROKEN_ACK_DELIVERIES_FIRST
		goto ending;
deliveries:
#endif
		k = 0;
		do
		:: k < NM ->
#ifdef BROKEN_ACK_IN_ANY_ORDER
			m = (me == 1 -> k : NM - 1 - k);
#else
			m = k;
#endif
			atomic {
				!has(wanted, m) || d_lock[m] == 0 ->
				if
				:: has(wanted, m) && (db.state[m] == LEASED || db.state[m] == EXPIRED) ->
					j = 0;
					do
					:: j < NM && !has(pending[j], m) -> j++
					:: j < NM && has(pending[j], m) -> break
					:: else -> break
					od;
					if
					:: j == NM -> d_lock[m] = me; d_pending = d_pending | bit(m)
					:: else
					fi;
					j = 0
				:: else
				fi;
				k++
			}
		:: else -> break
		od;
#ifdef BROKEN_ACK_DELIVERIES_FIRST
		goto leases;
ending:
#endif
		k = 0;
		if
		:: d_step { /* commit */
			i = 0;
			do
			:: i < NM ->
				j = 0;
				do
				:: j < NM ->
					if
					:: has(pending[i], j) ->
						must(!has(acked_ever, j), acked_twice);
						acked_ever = acked_ever | bit(j); acked_in_lease = acked_in_lease | bit(j);
						db.lease_acked[i] = db.lease_acked[i] + 1;
						holder[j] = 0; holds_until[j] = 0
					:: else
					fi;
					j++
				:: else -> break
				od;
#ifdef BROKEN_ACK_WITHOUT_CAS
				if :: pending[i] -> db.remaining[i] = old[i] & ~pending[i] :: else fi;
#else
				db.remaining[i] = db.remaining[i] & ~pending[i];
#endif
				if
				:: has(d_pending, i) ->
					must(!has(acked_ever, i), acked_twice);
					acked_ever = acked_ever | bit(i); db.state[i] = ACKED;
					holder[i] = 0; holds_until[i] = 0
				:: else
				fi;
				must(!has(wanted, i) || holder[i] != me || holds_until[i] <= now, ack_found_nothing);
				i++
			:: else -> break
			od;
			i = 0; j = 0;
			mine = mine & ~wanted;
#ifndef BROKEN_ACK_NOT_FLUSHED
			flush();
#endif
			check()
		   }
		:: skip /* rolled back */
		fi;
		d_step {
			i = 0;
			do
			:: i < NM ->
				if :: lock[i] == me -> lock[i] = 0 :: else fi;
				if :: d_lock[i] == me -> d_lock[i] = 0 :: else fi;
				old[i] = 0; pending[i] = 0;
				if :: !has(mine, i) -> attempt[i] = 0 :: else fi;
				i++
			:: else -> break
			od;
			i = 0; d_pending = 0; wanted = 0; m = 0; ended()
		}

	:: may_move && mine -> /* nack, extend or give back one message */
		if
		:: act = AVAILABLE
		:: act = LEASED
		:: act = NOWHERE /* give back */
		fi;
		d_step {
			m = 0;
			do
			:: has(mine, m) -> break
			:: else -> m++
			od;
			k = 0;
			do
			:: k < NM && !has(db.remaining[k], m) -> k++
			:: else -> break
			od;
			if
			:: k < NM -> old[0] = db.remaining[k]
			:: else
			fi;
			begun()
		};
		/* leases, each if it is what was read */
		do
		:: k < NM ->
			atomic {
				lock[k] == 0 ->
				if
				:: db.remaining[k] == old[0] && (attempt[m] == 1) && db.deadline[k] > clock && has(old[0], m) ->
					d_step {
						must(!dropped, payload_missing);
						db.remaining[k] = db.remaining[k] & ~bit(m);
						db.state[m] = (act == LEASED -> LEASED : (act == AVAILABLE && MAX_ATTEMPTS <= 1 -> DEAD : AVAILABLE));
						db.attempts[m] = (act == NOWHERE -> 0 : 1);
						db.next_at[m] = (act == LEASED -> clock + 2 : clock);
						taken(m);
						if
						:: act == LEASED -> holder[m] = me; holds_until[m] = clock + 2
						:: else -> mine = mine & ~bit(m)
						fi;
						act = 9; k = NM;
						flush(); check()
					}
				:: db.remaining[k] != old[0] && has(db.remaining[k], m) -> old[0] = db.remaining[k]
				:: else -> k = NM
				fi
			}
		:: else -> break
		od;
		/* then deliveries */
		if
		:: act != 9 ->
			atomic {
				d_lock[m] == 0 ->
				if
				:: db.state[m] == LEASED && db.next_at[m] > clock && same_attempt(m) ->
					d_step {
						db.state[m] = (act == LEASED -> LEASED :
							(act == AVAILABLE && db.attempts[m] >= MAX_ATTEMPTS -> DEAD : AVAILABLE));
						db.attempts[m] = (act == NOWHERE -> db.attempts[m] - 1 : db.attempts[m]);
						db.next_at[m] = (act == LEASED -> clock + 2 : clock);
						taken(m);
						if
						:: act == LEASED -> holder[m] = me; holds_until[m] = clock + 2
						:: else -> mine = mine & ~bit(m)
						fi;
						flush(); check()
					}
				:: else -> mine = mine & ~bit(m)
				fi
			}
		:: else
		fi;
		d_step { if :: !has(mine, m) -> attempt[m] = 0 :: else fi; old[0] = 0; k = 0; m = 0; act = 0; ended() }

	:: mine -> /* it dies, or forgets */
		d_step {
			mine = 0; i = 0;
			do
			:: i < NM -> attempt[i] = 0; i++
			:: else -> break
			od;
			i = 0
		}
	od
}

proctype world() {
	byte from, stale[NM];

end:	do
	:: clock < T -> clock++
#ifdef CLOCK
	:: !stepped_back && clock > 0 -> d_step { clock--; stepped_back = true }
#endif
#ifdef CRASH
	:: d_step { !crashed -> flush() } /* the WAL writer */
	:: d_step {
		/* A transaction that is open is rolled back: as if it had been just before. */
		!crashed && transactions == 0 -> crashed = true;
		db.cursor = flushed.cursor; db.swept_to = flushed.swept_to; db.acked = flushed.acked; db.held = flushed.held;
		i = 0;
		do
		:: i < NM ->
			if
			:: flushed.cursor <= i || flushed.attempts[i] != db.attempts[i] || flushed.state[i] != db.state[i] -> /* its claim is lost */
				holder[i] = 0; holds_until[i] = 0
			:: else
			fi;
			db.deadline[i] = flushed.deadline[i]; db.remaining[i] = flushed.remaining[i];
			db.lease_acked[i] = flushed.lease_acked[i]; db.state[i] = flushed.state[i];
			db.next_at[i] = flushed.next_at[i]; db.attempts[i] = flushed.attempts[i];
			flushed.deadline[i] = 0; flushed.remaining[i] = 0; flushed.lease_acked[i] = 0; flushed.state[i] = 0;
			flushed.next_at[i] = 0; flushed.attempts[i] = 0;
			i++
		:: else -> break
		od;
		i = 0;
		flushed.cursor = 0; flushed.swept_to = 0; flushed.acked = 0; flushed.held = 0;
		check()
	   }
#endif
#ifdef SPILL
	:: !dropped ->
#ifndef BROKEN_SPILL_WITHOUT_LOCK
		atomic { !locked -> locked = true; begun() };
#endif
#ifdef SPILL_IN_TWO_STEPS
		d_step {
			from = db.cursor;
			do
			:: i < NM -> stale[i] = db.remaining[i]; i++
			:: else -> break
			od;
			i = 0
		};
#endif
		d_step {
			do
			:: i < NM ->
				if
				:: i >= not_had -> db.state[i] = AVAILABLE; db.next_at[i] = clock
				:: else
				fi;
				if
#ifdef BROKEN_SPILL_LEAVES_LEASES
				:: true
#endif
				:: lock[i] == 0 && db.deadline[i] > db.swept_to -> /* SKIP LOCKED; what has run out is for a sweep */
					j = 0;
					do
					:: j < NM ->
						if
#ifdef BROKEN_SPILL_STALE_LEASES
						:: has(stale[i], j) ->
#else
						:: has(db.remaining[i], j) ->
#endif
#ifdef BROKEN_SPILL_LEASES_AS_AVAILABLE
							db.state[j] = AVAILABLE;
#else
							db.state[j] = LEASED;
#endif
							db.next_at[j] = db.deadline[i]; db.attempts[j] = 1
						:: else
						fi;
						j++
					:: else -> break
					od;
					/* Nobody looks at it again: -infinity. */
					db.remaining[i] = 0; db.acked = db.acked + db.lease_acked[i]; db.lease_acked[i] = 0; db.deadline[i] = 0
				:: else
				fi;
				i++
			:: else -> break
			od;
			db.cursor = NM;
			i = 0;
			do
			:: i < NM ->
				/* A spill leaves nothing that is in the way, but for what is locked, or was. */
				must(db.remaining[i] == 0 || lock[i] || has(db.held, i), slot_stuck);
				stale[i] = 0; i++
			:: else -> break
			od;
			i = 0; j = 0; from = 0;
			check();
#ifndef BROKEN_SPILL_WITHOUT_LOCK
			locked = false; ended()
#endif
		}
	:: d_step { /* truncate: the mark and what it waits for are in slots.pml */
		!dropped && db.cursor == NM ->
		do
#ifndef BROKEN_TRUNCATE_WITHOUT_LEASES
		:: i < NM && db.remaining[i] -> break
#endif
		:: i < NM -> i++
		:: else -> break
		od;
		if
		:: i == NM ->
			dropped = true;
#ifndef BROKEN_TRUNCATE_NOT_FLUSHED
			flush() /* Postgres always does */
#endif
		:: else
		fi;
		i = 0;
		check()
	   }
#endif
	od
}

init {
	atomic { run consumer(1); run consumer(2); run world() }
}
