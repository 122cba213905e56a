-- sweep_leases ends the leases of a subscription whose deadlines have passed. What nobody acked of them is in deliveries then:
-- due at once, or dead if the subscription delivers a message so often and no more. claim and sweep call it under the
-- subscription's lock and with their planner settings; nobody else does.
--
-- Each lease is looked at once, in the order of the deadlines: those in (swept_to, now_at], as many as have about 100
-- messages to move, or 1,000 of them. Those in deliveries, which are searched from due_from on, are as many at most. A lease whose row somebody has locked is not waited for; it is noted in held_leases
-- and tried again each time. An ack that comes meanwhile finds its message here or there: it looks into the lease and then,
-- in a statement of its own, into deliveries.
--
-- It returns how far it looked, in leases (swept_to) and in deliveries (due_to), where now_at is all; how many messages of the
-- leases it looked at had been acked, how many it made available and how many dead. looked is false when there was
-- nothing.
CREATE OR REPLACE FUNCTION {schema}.sweep_leases(
    sub_num int, topic int, max_attempts int, INOUT swept_to timestamptz, due_from timestamptz, now_at timestamptz,
    OUT due_to timestamptz, OUT acked bigint, OUT expired int, OUT died int, OUT looked boolean)
LANGUAGE plpgsql
AS $$
DECLARE
    max_messages CONSTANT int := 100;
    max_leases   CONSTANT int := 1000;
    n_leases     int := max_messages;
    due          record;
    held         record;
    n_held       int;
    got          record;
    remaining    int8multirange;
    moved        int;
BEGIN
    acked := 0; expired := 0; died := 0; looked := false; due_to := now_at;

    SELECT count(*) AS n, max(d.next_at) AS upto, array_agg(d.tid) AS tids, count(*) FILTER (WHERE d.attempts >= max_attempts) AS died
    INTO due
    FROM (
        SELECT d.ctid AS tid, d.next_at, d.attempts
        FROM {schema}.deliveries d
        WHERE d.sub = sub_num AND d.next_at >= due_from AND d.next_at <= now_at AND d.state = 'leased'
        ORDER BY d.next_at
        LIMIT max_messages
        FOR UPDATE SKIP LOCKED
    ) d;
    IF due.n > 0 THEN
        looked := true;
        UPDATE {schema}.deliveries d
        SET state = CASE WHEN d.attempts < max_attempts THEN 'expired' ELSE 'dead' END::{schema}.delivery_state,
            next_at = now_at,
            dead_at = CASE WHEN d.attempts < max_attempts THEN NULL ELSE now_at END,
            last_error = 'ack deadline passed'
        WHERE d.ctid = ANY (due.tids);
        died := due.died;
        expired := due.n - due.died;
        IF due.n = max_messages THEN
            due_to := due.upto;
        END IF;
    END IF;

    -- Leases with the same deadline are taken together, so that the next look can begin behind it. What was emptied cannot
    -- change any more, so its row need not be locked. Only if all are empty it is worth to look at more of them.
    LOOP
        SELECT count(*) AS n, max(l.deadline) AS upto, coalesce(sum(l.acked) FILTER (WHERE l.size = 0), 0) AS acked,
               max(l.seen) AS seen,
               array_agg(l.slot ORDER BY l.deadline) FILTER (WHERE l.size > 0) AS slots,
               array_agg(l.kind ORDER BY l.deadline) FILTER (WHERE l.size > 0) AS kinds,
               array_agg(l.first_xid ORDER BY l.deadline) FILTER (WHERE l.size > 0) AS first_xids,
               array_agg(l.first_seq ORDER BY l.deadline) FILTER (WHERE l.size > 0) AS first_seqs
        INTO due
        FROM (
            SELECT l.*, sum(l.size) OVER (ORDER BY l.deadline) AS messages, sum(l.size) OVER (PARTITION BY l.deadline) AS own,
                   count(*) OVER () AS seen
            FROM (
                SELECT l.slot, l.kind, l.first_xid, l.first_seq, l.deadline, l.acked,
                       CASE WHEN isempty(l.remaining) THEN 0
                            ELSE (SELECT sum(upper(r) - lower(r)) FROM unnest(l.remaining) r) END AS size
                FROM {schema}.leases l
                WHERE l.sub = sub_num AND l.deadline > '-infinity' AND l.deadline > sweep_leases.swept_to AND l.deadline <= now_at
                ORDER BY l.deadline
                FETCH FIRST n_leases ROWS WITH TIES
            ) l
        ) l
        WHERE l.messages - l.own < max_messages;
        EXIT WHEN due.slots IS NOT NULL OR due.n = 0 OR due.seen < n_leases OR n_leases = max_leases;
        n_leases := max_leases;
    END LOOP;
    IF due.n > 0 THEN
        looked := true;
        acked := due.acked;
        swept_to := CASE WHEN due.n < due.seen OR due.seen >= n_leases THEN due.upto ELSE now_at END;
    ELSE
        swept_to := now_at;
    END IF;

    SELECT array_agg(h.slot) AS slots, array_agg(h.kind) AS kinds, array_agg(h.first_xid) AS first_xids,
           array_agg(h.first_seq) AS first_seqs
    INTO held
    FROM (
        SELECT h.slot, h.kind, h.first_xid, h.first_seq
        FROM {schema}.held_leases h
        CROSS JOIN LATERAL (  -- as many as can be had: those that are still locked must not fill the limit
            SELECT 1 FROM {schema}.leases l
            WHERE l.sub = sub_num AND l.kind = h.kind AND l.first_xid = h.first_xid AND l.first_seq = h.first_seq
              AND l.slot = h.slot
            FOR UPDATE SKIP LOCKED
        ) l
        WHERE h.sub = sub_num
        LIMIT max_leases
    ) h;
    n_held := coalesce(cardinality(held.slots), 0);
    due.slots := held.slots || due.slots;
    due.kinds := held.kinds || due.kinds;
    due.first_xids := held.first_xids || due.first_xids;
    due.first_seqs := held.first_seqs || due.first_seqs;
    IF due.slots IS NULL THEN
        RETURN;
    END IF;

    SELECT array_agg(k.i) AS numbers, array_agg(l.tid) AS tids, array_agg(l.slot) AS slots, sum(l.acked) AS acked,
           array_agg(l.first_xid) AS first_xids, array_agg(l.first_seq) AS first_seqs,
           array_agg(l.last_xid) AS last_xids, array_agg(l.last_seq) AS last_seqs, array_agg(l.remaining) AS remainings
    INTO got
    FROM unnest(due.slots, due.kinds, due.first_xids, due.first_seqs)
         WITH ORDINALITY k(slot, kind, first_xid, first_seq, i)
    CROSS JOIN LATERAL (
        SELECT l.ctid AS tid, l.slot, l.first_xid, l.first_seq, l.last_xid, l.last_seq, l.remaining, l.acked
        FROM {schema}.leases l
        WHERE l.sub = sub_num AND l.kind = k.kind AND l.first_xid = k.first_xid AND l.first_seq = k.first_seq
          AND l.slot = k.slot
        FOR UPDATE SKIP LOCKED  -- protection: wait for nobody
    ) l;

    INSERT INTO {schema}.held_leases (first_xid, first_seq, sub, kind, slot)
    SELECT k.first_xid, k.first_seq, sub_num, k.kind, k.slot
    FROM unnest(due.slots, due.kinds, due.first_xids, due.first_seqs)
         WITH ORDINALITY k(slot, kind, first_xid, first_seq, i)
    WHERE k.i > n_held AND (k.i = ANY (got.numbers)) IS NOT TRUE;  -- protection: held
    IF got.numbers IS NULL THEN
        RETURN;
    END IF;
    IF n_held > 0 THEN
        DELETE FROM {schema}.held_leases h
        USING unnest(held.slots, held.kinds, held.first_xids, held.first_seqs)
              WITH ORDINALITY k(slot, kind, first_xid, first_seq, i)
        WHERE h.sub = sub_num AND h.kind = k.kind AND h.first_xid = k.first_xid AND h.first_seq = k.first_seq
          AND h.slot = k.slot AND k.i = ANY (got.numbers);
    END IF;
    looked := true;
    acked := acked + got.acked;
    remaining := (SELECT range_agg(r) FROM unnest(got.remainings) m(ranges), unnest(m.ranges) r);
    IF remaining IS NULL THEN  -- acked meanwhile
        RETURN;
    END IF;
    moved := {schema}.to_deliveries(
        sub_num, topic, got.first_xids, got.first_seqs, got.last_xids, got.last_seqs, remaining,
        CASE WHEN max_attempts > 1 THEN 'expired' ELSE 'dead' END::{schema}.delivery_state, 1, now_at,
        CASE WHEN max_attempts > 1 THEN NULL ELSE now_at END, NULL, 'ack deadline passed');
    IF max_attempts > 1 THEN
        expired := expired + moved;
    ELSE
        died := died + moved;
    END IF;
    -- By slot: a ctid is unique in its partition only. The sum keeps the primary key away, which has the slot last: where the
    -- planner believes that the table is small, it would read all of it.
    FOR part IN 0..3 LOOP
        IF part = ANY (got.slots) THEN
            UPDATE {schema}.leases l SET remaining = '{}'
            WHERE l.slot + 0 = part
              AND l.ctid = ANY (ARRAY(SELECT t.tid FROM unnest(got.tids, got.slots) t(tid, slot) WHERE t.slot = part));
        END IF;
    END LOOP;
END $$;
