-- claim_due hands out up to want messages of a subscription that wait in deliveries and are due, or whose lease there has
-- run out. What has used up its attempts becomes a dead letter instead. claim calls it under the subscription's lock and
-- with its planner settings; nobody else does. Rows that somebody has locked are passed over.
--
-- It returns positions and attempts in log order, and end_at: what was due before that has been handed out.
CREATE OR REPLACE FUNCTION {schema}.claim_due(
    sub_num int, max_attempts int, consumer text, deadline timestamptz, want int, from_at timestamptz, now_at timestamptz,
    OUT xids bigint[], OUT seqs bigint[], OUT attempts int[], OUT end_at timestamptz, OUT died int)
LANGUAGE plpgsql
AS $$
DECLARE
    due  record;
    rest int := want;
BEGIN
    died := 0;
    end_at := from_at;
    LOOP
        SELECT array_agg(d.tid) AS tids, count(*) AS n, max(d.next_at) AS upto,
               array_agg(d.xid) FILTER (WHERE d.attempts < max_attempts) AS xids,
               array_agg(d.seq) FILTER (WHERE d.attempts < max_attempts) AS seqs,
               array_agg(d.attempts + 1) FILTER (WHERE d.attempts < max_attempts) AS attempts
        INTO due
        FROM (
            SELECT d.ctid AS tid, d.xid, d.seq, d.next_at, d.attempts
            FROM {schema}.deliveries d
            WHERE d.sub = sub_num AND d.next_at >= end_at AND d.next_at <= now_at
              AND d.state <> 'acked' AND d.state <> 'dead'
            ORDER BY d.next_at
            LIMIT rest
            FOR UPDATE SKIP LOCKED
        ) d;
        UPDATE {schema}.deliveries d
        SET state = CASE WHEN d.attempts < max_attempts THEN 'leased' ELSE 'dead' END::{schema}.delivery_state,
            attempts = CASE WHEN d.attempts < max_attempts THEN d.attempts + 1 ELSE d.attempts END,
            next_at = claim_due.deadline,
            dead_at = CASE WHEN d.attempts < max_attempts THEN NULL ELSE now_at END,
            consumer = CASE WHEN d.attempts < max_attempts THEN claim_due.consumer ELSE d.consumer END,
            last_error = CASE WHEN d.state = 'leased' THEN 'ack deadline passed' ELSE d.last_error END
        WHERE d.ctid = ANY (due.tids);
        xids := xids || due.xids;
        seqs := seqs || due.seqs;
        attempts := attempts || due.attempts;
        died := died + due.n - coalesce(cardinality(due.xids), 0);
        IF due.n < rest THEN
            end_at := now_at;
            EXIT;
        END IF;
        end_at := due.upto;
        rest := rest - coalesce(cardinality(due.xids), 0);
        EXIT WHEN rest = 0 OR died >= 1000;  -- the next call goes on
    END LOOP;
    SELECT array_agg(d.xid ORDER BY d.xid, d.seq), array_agg(d.seq ORDER BY d.xid, d.seq),
           array_agg(d.attempt ORDER BY d.xid, d.seq)
    INTO xids, seqs, attempts
    FROM unnest(xids, seqs, attempts) d(xid, seq, attempt);
END $$;
