-- newer_messages says whether a slot of the log has messages that a snapshot does not see. NULL sees nothing, and is false.
CREATE OR REPLACE FUNCTION {schema}.newer_messages(slot smallint, seen pg_snapshot) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {schema}.topics t
        CROSS JOIN LATERAL (
            SELECT FROM {schema}.messages m
            WHERE m.slot = newer_messages.slot AND m.topic_num = t.num AND m.xid >= pg_snapshot_xmax(seen)::text::bigint
            ORDER BY m.xid, m.base LIMIT 1
        ) m)
    OR EXISTS (
        SELECT FROM {schema}.topics t
        CROSS JOIN pg_snapshot_xip(seen) x
        CROSS JOIN LATERAL (
            SELECT FROM {schema}.messages m
            WHERE m.slot = newer_messages.slot AND m.topic_num = t.num AND m.xid = x::text::bigint
            ORDER BY m.xid, m.base LIMIT 1
        ) m);
END $$;
