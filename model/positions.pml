/* Commit order: publishers commit in any order, and a subscription gets each message once, after its commit.
 *
 * Configurations: none, a subscription that was there before, with two consumers; CREATE, one that is created by a
 * transaction; OWN, a claim whose transaction publishes as well. */

#ifndef NX
#define NX 3
#endif
#include "common.pml"

/* Message k of transaction x, k = 0 or 1, has the position 2x + k: seqs of different transactions are never compared. */
#define pos(x, k) (2 * (x) + (k))
byte rows[NX + 1]; /* the log: a bit for each message of a transaction, committed or not */

/* One subscription: its cursor row, and what it has handed out. */
bool exists;
byte cursor;          /* the last position examined */
byte late;            /* transactions that were in progress when the cursor passed them */
byte late_had;        /* those of which message 0 has been examined already */
byte handed[NX + 1];
byte promised[NX + 1]; /* 3 for the transactions whose messages it is to get */
bool locked;          /* the advisory lock */

/* What holds in every state: a message that is committed and promised has been handed out, or will be found. */
inline nothing_is_lost() {
	i = 1;
	do
	:: i <= NX ->
		if
		:: exists && has(committed, i) ->
			j = 0;
			do
			:: j < 2 ->
				must(!((rows[i] & promised[i]) >> j & 1) || (handed[i] >> j & 1) || pos(i, j) > cursor ||
					(has(late, i) && (j == 1 || !has(late_had, i))), message_lost);
				j++
			:: else -> break
			od
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0; j = 0
}

proctype publisher(byte x) {
	atomic { draw_xid(x) };
	if
	:: d_step { rows[x] = 1 };
		if
		:: d_step { rows[x] = 3 }
		:: true
		fi
	:: true /* writes something else */
	fi;
	if
	:: d_step { commit(x); nothing_is_lost() }
	:: d_step { rollback(x) }
	fi
}

/* What a scan takes: the first `budget` messages of the set, in log order. See scan_main and scan_late. */
#define BUDGET 2

proctype consumer(byte own) {
	byte from, to;            /* the cursor that was read, and the new one */
	byte was_late, was_had;
	byte finished, taken_late;
	byte passed;              /* new late transactions */
	byte wanted;
	byte got[NX + 1];
	bool found, quiet;
	bool drew;                /* whether the claim's own transaction has an xid */

again:
	exists;
#ifdef BROKEN_READ_BEFORE_LOCK
	d_step { from = cursor; was_late = late; was_had = late_had };
	atomic { !locked -> locked = true };
#else
	atomic { !locked -> locked = true };
	d_step { from = cursor; was_late = late; was_had = late_had };
#endif
	d_step { quiet = all_over; wanted = BUDGET; to = from; passed = 0; finished = 0; taken_late = 0; found = false };

#ifdef OWN
	if
#ifdef BROKEN_PUBLISHED_BEFORE
	:: own && next_xid == own -> atomic { draw_xid(own); drew = true; rows[own] = 1 }
#else
	:: own && next_xid == own -> atomic { draw_xid(own); drew = true } /* it swept something, or took a redelivery */
#endif
	:: true
	fi;
#endif

	/* scan_late, first statement: what is finished. */
	if
	:: was_late ->
#ifdef BROKEN_LATE_NOT_CHECKED
		finished = was_late;
#else
		d_step { finished = was_late & ~in_progress };
#endif
		/* Second statement: what is in the log of it. */
		d_step {
			i = 1;
			do
			:: i <= NX ->
				if
				:: has(finished, i) && wanted > 0 ->
					j = 0;
					do
					:: j < 2 ->
						if
						:: wanted > 0 && has(committed, i) && (rows[i] >> j & 1) && (j == 1 || !has(was_had, i)) ->
							got[i] = got[i] | 1 << j;
							wanted--;
							if
							:: j == 0 -> was_had = was_had | bit(i)
							:: else -> taken_late = taken_late | bit(i)
							fi
						:: else
						fi;
						j++
					:: else -> break
					od;
					if
					:: wanted > 0 -> taken_late = taken_late | bit(i) /* examined whole */
					:: else
					fi
				:: else
				fi;
				i++
			:: else -> break
			od;
			was_late = was_late & ~taken_late;
			was_had = was_had & was_late;
			i = 0; j = 0
		}
	:: else
	fi;

	/* scan_main: first what lies before the oldest transaction in progress. */
	if
	:: wanted > 0 ->
		d_step {
			i = 1;
			do
			:: i < next_xid && !(has(in_progress, i) && i > from / 2 && !(drew && i == own)) ->
				j = 0;
				do
				:: j < 2 ->
					if
					:: wanted > 0 && (has(committed, i) || (drew && i == own)) && (rows[i] >> j & 1) && pos(i, j) > from ->
						got[i] = got[i] | 1 << j; to = pos(i, j); wanted--; found = true
					:: else
					fi;
					j++
				:: else -> break
				od;
				i++
			:: else -> break
			od;
			i = 0; j = 0
		};
		/* Then, if there is nothing, beyond it: rows and open transactions of one snapshot. */
		if
		:: !found ->
			d_step {
				i = 1;
				do
				:: i < next_xid ->
					j = 0;
					do
					:: j < 2 ->
						if
						:: wanted > 0 && has(committed, i) && (rows[i] >> j & 1) && pos(i, j) > from ->
							got[i] = got[i] | 1 << j; to = pos(i, j); wanted--; found = true
						:: else
						fi;
						j++
					:: else -> break
					od;
					i++
				:: else -> break
				od;
#ifndef BROKEN_LATE_OF_ANOTHER_SNAPSHOT
				passed = in_progress;
#endif
				i = 0; j = 0
			};
#ifdef BROKEN_LATE_OF_ANOTHER_SNAPSHOT
			d_step { passed = in_progress };
#endif
		:: else
		fi
	:: else
	fi;
	d_step {
		/* Its own xid is in none of its snapshots. */
#ifdef BROKEN_OWN_NOT_LATE
		if :: drew -> passed = passed & ~bit(own) :: else fi;
#else
		if :: drew -> passed = passed | bit(own) :: else fi;
#endif
		i = 1;
		do
		:: i <= NX -> /* only those beyond the cursor that it has passed */
			if :: i <= from / 2 || i >= to / 2 -> passed = passed & ~bit(i) :: else fi;
			i++
		:: else -> break
		od;
#ifdef BROKEN_NO_LATE
		passed = 0;
#endif
		i = 0
	};
#ifdef OWN
	/* A publish in the same transaction, which nobody should do, after the claim. */
	if
	:: drew -> d_step { rows[own] = 1 }
	:: !drew && own && next_xid == own -> atomic { draw_xid(own); drew = true; rows[own] = 1 }
	:: true
	fi;
#endif

	if
#ifdef OWN
	:: drew -> /* it may be rolled back, and then nothing has happened */
		d_step { rollback(own); drew = false; locked = false };
		goto end_of_claim
#endif
	:: d_step {
		if :: drew -> commit(own); drew = false :: else fi;
		cursor = to;
		late = was_late | passed;
		late_had = was_had;
		i = 1;
		do
		:: i <= NX ->
			must(got[i] == 0 || has(committed, i), handed_out_uncommitted);
			must((handed[i] & got[i]) == 0, handed_out_twice);
			handed[i] = handed[i] | got[i];
			i++
		:: else -> break
		od;
		nothing_is_lost();
		if
		:: quiet && wanted == BUDGET -> /* nothing was going on, and it found nothing */
			must(late == 0, not_drained);
			i = 1;
			do
			:: i <= NX ->
				must(!has(committed, i) || (handed[i] & promised[i]) == (rows[i] & promised[i]), not_drained);
				i++
			:: else -> break
			od
		:: else
		fi;
		i = 0; locked = false
	   }
	fi;
end_of_claim:
	skip;
	d_step {
		i = 1;
		do
		:: i <= NX -> got[i] = 0; i++
		:: else -> break
		od;
		i = 0; from = 0; to = 0; was_late = 0; was_had = 0; finished = 0; taken_late = 0; passed = 0; wanted = 0;
		found = false; quiet = false
	};
	goto again
}

/* create_subscription, in a transaction that may publish before and after it. */
proctype creator(byte x) {
	byte got;

	atomic { draw_xid(x) };
	if
	:: d_step { rows[x] = 1 }
	:: true
	fi;
	d_step {
		cursor = pos(next_xid - 1, 1);
#ifdef BROKEN_CREATED_WITHOUT_LATE
		late = bit(x);
#else
#ifdef BROKEN_CREATED_WITHOUT_OWN
		late = in_progress & ~bit(x);
#else
		late = in_progress;
#endif
#endif
		i = 1;
		do
		:: i <= NX -> promised[i] = (has(committed, i) || (i < next_xid && !has(in_progress, i)) -> 0 : 3); i++
		:: else -> break
		od;
		i = 0
	};
	if
	:: d_step { rows[x] = rows[x] | 2 }
	:: true
	fi;
	d_step { commit(x); exists = true; nothing_is_lost() }
}

init {
	atomic {
#ifdef CREATE
		run publisher(1); run creator(2); run publisher(3); run consumer(0);
#else
		exists = true;
		cursor = pos(0, 1);
		i = 1;
		do
		:: i <= NX -> promised[i] = 3; i++
		:: else -> break
		od;
		i = 0;
#ifdef OWN
		run publisher(1); run consumer(2); run publisher(3); run consumer(0);
#else
		i = 1;
		do
		:: i <= NX -> run publisher(i); i++
		:: else -> break
		od;
		i = 0;
		run consumer(0); run consumer(0);
#endif
#endif
	}
}
