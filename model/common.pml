/* Transactions and snapshots as Postgres has them. Every model includes this. Define NX, the number of transaction ids.
 *
 * A set of transactions is a bit mask: bit x stands for xid x. Xids begin at 1 and are drawn in order. */

#define bit(x)    (1 << (x))
#define has(s, x) (((s) >> (x)) & 1)

byte next_xid = 1; /* what a snapshot has as its xmax */
byte in_progress;  /* what a snapshot has as its xip: an xid, and neither committed nor rolled back */
byte committed;    /* never changes back; what is visible to a new snapshot */

#define draw_xid(x) next_xid == x -> next_xid++; in_progress = in_progress | bit(x)
#define commit(x)   in_progress = in_progress & ~bit(x); committed = committed | bit(x)
#define rollback(x) in_progress = in_progress & ~bit(x)

#define all_over (next_xid == NX + 1 && in_progress == 0)

/* Counters of loops inside a d_step. They mean nothing outside, so they are 0 there. */
byte i, j;

/* must(condition, name): the property that a counterexample is named after. The variables are always false; they are there
 * for their names. */
bool message_lost, handed_out_twice, handed_out_uncommitted, not_drained, acked_twice, ack_found_nothing,
	stale_cursor, count_wrong, too_many_attempts, taken_from_its_holder,
	reader_missed_it, slot_stuck, payload_missing;
#define must(condition, name) if :: (condition) :: else -> assert(name) fi
