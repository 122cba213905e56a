-- look says for each of some subscriptions whether a claim would find something, without a lock and without writing: for
-- those who wait, many subscriptions in one round trip. What it says is a hint. A filter is not evaluated, and a lease that
-- has run out counts though all of it may be acked.
--
-- due_in_seconds is when to look again in any case, because a message becomes due or an ack deadline passes; NULL is never.
-- A subscription that does not exist has no row.
CREATE OR REPLACE FUNCTION {schema}.look(sub_ids text[])
RETURNS TABLE (sub_id text, topic_id text, filtered boolean, ready boolean, due_in_seconds float8)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_material = off
SET enable_memoize = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now_at  timestamptz := {schema}.clock();
    current smallint := (SELECT last_value FROM {schema}.lease_slot) & 3;
BEGIN
    RETURN QUERY
    SELECT s.id, t.id, s.filter_path IS NOT NULL,
           coalesce(l.due_at <= l.now_at, false)
           OR EXISTS (
               -- Not what lies in transactions that are open: a bulk load would be read row by row on every look.
               SELECT FROM (
                   SELECT array_agg(x::text::bigint ORDER BY x) AS xids FROM pg_snapshot_xip(pg_current_snapshot()) x
               ) open
               CROSS JOIN LATERAL unnest(NULL::bigint || open.xids, open.xids || NULL::bigint) gap(behind, before)
               CROSS JOIN LATERAL (
                   SELECT FROM {schema}.messages m
                   WHERE m.topic_num = s.topic_num
                     AND (m.xid, m.base) >= (CASE WHEN gap.behind >= c.xid THEN gap.behind + 1 ELSE c.xid END,
                                             CASE WHEN gap.behind >= c.xid THEN 0 ELSE (c.seq + 1) & ~65535::bigint END)
                     AND m.xid < coalesce(gap.before, 9223372036854775807)
                     AND (m.xid, m.base + m.n - 1) > (c.xid, c.seq)
                   ORDER BY m.xid, m.base LIMIT 1
               ) m)
           OR cardinality(c.late_xids) > 0
              AND EXISTS (SELECT FROM unnest(c.late_xids) x WHERE pg_visible_in_snapshot(x::text::xid8, pg_current_snapshot()))
           OR EXISTS (
               -- What somebody had locked when it ran out, and has let go of without taking it: xmax is who had the row last.
               -- A savepoint has another number than its transaction, which is in the list; then a claim finds out.
               SELECT FROM {schema}.held_leases h
               CROSS JOIN LATERAL (
                   SELECT l.xmax AS locker FROM {schema}.leases l
                   WHERE l.sub = s.num AND l.kind = h.kind AND l.first_xid = h.first_xid AND l.first_seq = h.first_seq
                     AND l.slot = h.slot AND NOT isempty(l.remaining)
                   LIMIT 1
               ) l
               WHERE h.sub = s.num
                 AND NOT EXISTS (SELECT FROM pg_snapshot_xip(pg_current_snapshot()) x WHERE x::xid = l.locker)),
           extract(epoch FROM l.due_at - l.now_at)::float8
    FROM unnest(sub_ids) w(id)
    JOIN {schema}.subscriptions s ON s.id = w.id
    JOIN {schema}.topics t ON t.num = s.topic_num
    CROSS JOIN LATERAL (
        -- The slots of cursors fill in order, so the newest of the current slot is the newest of all.
        SELECT n.* FROM (
            (SELECT c.xid, c.seq, c.late_xids, c.swept_to, c.due_to, c.full_at
             FROM {schema}.cursors c WHERE c.sub = s.num AND c.slot = current ORDER BY c.gen DESC LIMIT 1)
            UNION ALL
            (SELECT c.xid, c.seq, c.late_xids, c.swept_to, c.due_to, c.full_at
             FROM {schema}.cursors c WHERE c.sub = s.num ORDER BY c.gen DESC LIMIT 1)
        ) n LIMIT 1
    ) c
    CROSS JOIN LATERAL (
        SELECT greatest(now_at, c.swept_to) AS now_at, least(  -- the time by which claim judges
            (SELECT l.deadline FROM {schema}.leases l
             WHERE l.sub = s.num AND l.deadline > '-infinity' AND l.deadline > c.swept_to
             ORDER BY l.deadline LIMIT 1),
            (SELECT d.next_at FROM {schema}.deliveries d
             WHERE d.sub = s.num AND d.next_at >= {schema}.due_from(c.due_to, c.full_at, now_at) AND d.state IN ('available', 'expired')
             ORDER BY d.next_at LIMIT 1),
            (SELECT d.next_at FROM {schema}.deliveries d
             WHERE d.sub = s.num AND d.next_at >= {schema}.due_from(c.due_to, c.full_at, now_at) AND d.state = 'leased'
             ORDER BY d.next_at LIMIT 1)
        ) AS due_at
    ) l;
END $$;
