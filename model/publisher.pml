/* A publisher, for the models with slots. */

proctype publisher(byte x) {
	byte s;

	if /* the slot is read before or after the xid is drawn, and the row comes any time later */
	:: s = current; atomic { draw_xid(x) }
	:: atomic { draw_xid(x) }; s = current
	fi;
	if
	:: atomic {
		exclusive != s + 1 ->
		writers[s] = writers[s] | bit(x); in_slot[s] = in_slot[s] | bit(x); wrote = wrote | bit(x)
	   }
	:: true
	fi;
	if /* first it has ended for everybody else, then its locks go */
	:: d_step { commit(x); nothing_is_lost() }
	:: d_step { rollback(x); in_slot[s] = in_slot[s] & ~bit(x); wrote = wrote & ~bit(x) }
	fi;
	d_step { writers[s] = writers[s] & ~bit(x); s = 0 }
}
