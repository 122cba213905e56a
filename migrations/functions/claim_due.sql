-- claim_due hands out up to want messages of a subscription that wait in deliveries and are due, from_at being where the search
-- for them begins. claim calls it under the subscription's lock and with its planner settings; nobody else does. Rows that
-- somebody has locked are passed over.
--
-- It ends with the message that fills room, a number of bytes, and returns positions and attempts in log order, how many bytes
-- they have, and due_to: what was due before that has been handed out.
CREATE OR REPLACE FUNCTION {schema}.claim_due(
    sub_num int, consumer text, deadline timestamptz, want int, room bigint, from_at timestamptz, now_at timestamptz,
    OUT xids bigint[], OUT seqs bigint[], OUT attempts int[], OUT bytes bigint, OUT due_to timestamptz)
LANGUAGE plpgsql
AS $$
DECLARE
    due record;
BEGIN
    SELECT array_agg(d.tid) AS tids, max(d.next_at) AS upto, max(d.filled) AS bytes,
           array_agg(d.xid ORDER BY d.xid, d.seq) AS xids, array_agg(d.seq ORDER BY d.xid, d.seq) AS seqs,
           array_agg(d.attempts + 1 ORDER BY d.xid, d.seq) AS attempts
    INTO due
    FROM (
        SELECT d.*, sum(d.size) OVER (ROWS UNBOUNDED PRECEDING) AS filled
        FROM (
            SELECT d.ctid AS tid, d.xid, d.seq, d.next_at, d.attempts,
                   octet_length(d.payload) + coalesce(pg_column_size(d.attributes), 0) AS size
            FROM {schema}.deliveries d
            WHERE d.sub = sub_num AND d.next_at >= from_at AND d.next_at <= now_at AND d.state IN ('available', 'expired')
            ORDER BY d.next_at
            LIMIT want
            FOR UPDATE SKIP LOCKED
        ) d
    ) d
    WHERE d.filled - d.size < room;  -- protection: bounded bytes
    UPDATE {schema}.deliveries d
    SET state = 'leased', attempts = d.attempts + 1, next_at = claim_due.deadline, consumer = claim_due.consumer
    WHERE d.ctid = ANY (due.tids);
    xids := due.xids;
    seqs := due.seqs;
    attempts := due.attempts;
    bytes := due.bytes;
    due_to := CASE WHEN cardinality(xids) = want OR bytes >= room THEN due.upto ELSE now_at END;
END $$;
