-- ack takes messages out of their leases, in the caller's transaction, which may have any isolation level. It returns
-- how many messages this call acked: each is acked once, by one call, which makes it a fence inside the caller's
-- transaction. NULL means that there is no such subscription; messages that are not leased are ignored.
--
-- Messages come as stretches: those of transaction xids[i] with los[i] <= seq < his[i], ascending by (xid, lo).
--
-- Which leases hold them is found without locks; then those rows are locked in key order, in one statement, so that
-- two calls that share leases cannot deadlock. A lease that another transaction has locked is waited for.
CREATE OR REPLACE FUNCTION {schema}.ack(sub_id text, xids bigint[], los bigint[], his bigint[]) RETURNS bigint
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    sub_num int;
    keys    record;
    acked   bigint;
BEGIN
    SELECT s.num INTO sub_num FROM {schema}.subscriptions s WHERE s.id = sub_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    keys := {schema}.find_leases(sub_num, xids, los, his);
    IF keys.slots IS NULL THEN
        RETURN 0;
    END IF;
    WITH wanted AS MATERIALIZED (
        SELECT range_agg(int8range(r.lo, r.hi)) AS seqs FROM unnest(los, his) r(lo, hi)
    ), held AS MATERIALIZED (
        SELECT l.slot, l.kind, l.first_xid, l.first_seq, l.remaining * w.seqs AS taken
        FROM wanted w
        CROSS JOIN unnest(keys.slots, keys.kinds, keys.first_xids, keys.first_seqs) k(slot, kind, first_xid, first_seq)
        JOIN {schema}.leases l ON l.sub = sub_num AND l.slot = k.slot AND l.kind = k.kind
                              AND l.first_xid = k.first_xid AND l.first_seq = k.first_seq
        WHERE l.remaining && w.seqs  -- protection: acked once
        ORDER BY l.kind, l.first_xid, l.first_seq  -- protection: lock order
        FOR NO KEY UPDATE OF l
    ), counted AS (
        SELECT h.slot, h.kind, h.first_xid, h.first_seq, h.taken,
               (SELECT sum(upper(t) - lower(t)) FROM unnest(h.taken) t) AS n
        FROM held h
    ), updated AS (
        UPDATE {schema}.leases l SET remaining = l.remaining - c.taken, acked = l.acked + c.n
        FROM counted c
        WHERE l.sub = sub_num AND l.slot = c.slot AND l.kind = c.kind
          AND l.first_xid = c.first_xid AND l.first_seq = c.first_seq
        RETURNING c.n
    )
    SELECT coalesce(sum(u.n), 0) INTO acked FROM updated u;
    RETURN acked;
END $$;
