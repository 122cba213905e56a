/* The ring of message slots. */

#define beyond(c)   (255 & ~((1 << ((c) + 1)) - 1)) /* the xids behind a cursor */
#define lowest(set) ((set) & (256 - (set)))         /* as a set */

byte current;       /* the current slot: a sequence, no matter of snapshots */
byte in_slot[NS];   /* transactions with a row there, committed or not */
byte writers[NS];   /* those that hold ROW EXCLUSIVE on it, which they do until they have ended */
byte exclusive;     /* 1 + the slot that truncate lets nobody write to */
byte wrote;         /* for the properties: all rows there ever were */

#if NS == 2
#define in_log (in_slot[0] | in_slot[1])
#define pick(s) if :: s = 0 :: s = 1 fi
#else
#define in_log (in_slot[0] | in_slot[1] | in_slot[2])
#define pick(s) if :: s = 0 :: s = 1 :: s = 2 fi
#endif

/* n = the number of a transaction in a set of one */
inline number(m, n) {
	i = 1;
	do
	:: bit(i) == m -> n = i; break
	:: else -> i++
	od;
	i = 0
}

/* n = the last transaction of a set, 0 if it is empty */
inline last_of(m, n) {
	i = 1; n = 0;
	do
	:: i <= NX ->
		if
		:: has(m, i) -> n = i
		:: else
		fi;
		i++
	:: else -> break
	od;
	i = 0
}

inline rotate() {
	atomic {
		s = (current + 1) % NS;
		if
#ifndef ROTATE_INTO_ANY
		:: in_slot[s] -> skip /* its files are not empty */
#endif
		:: else -> current = s
		fi;
		s = 0
	}
}
