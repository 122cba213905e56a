-- log_end is a cursor at the end of the log: behind every transaction that has an id now. Those that are still in progress
-- are late, and so is own_xid, the one that runs this, which its own snapshot does not list. The planner puts the body in its
-- place.
CREATE OR REPLACE FUNCTION {schema}.log_end(own_xid bigint)
RETURNS TABLE (xid bigint, seq bigint, late_xids bigint[], late_seqs bigint[])
LANGUAGE sql VOLATILE
AS $$
    SELECT xmax - 1, (1::bigint << 62) - 1, late, array_fill(-1::bigint, ARRAY[cardinality(late)])
    FROM (
        SELECT pg_snapshot_xmax(s)::text::bigint AS xmax,
               ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) x  -- protection: late at creation
                     UNION SELECT own_xid WHERE own_xid < pg_snapshot_xmax(s)::text::bigint
                     ORDER BY 1) AS late
        FROM pg_current_snapshot() s
    ) start
$$;
