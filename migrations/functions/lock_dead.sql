-- lock_dead locks those of the messages that are dead, in key order, and returns where their rows are. reprocess and purge
-- call it with their planner settings; nobody else does.
CREATE OR REPLACE FUNCTION {schema}.lock_dead(sub_num int, xids bigint[], los bigint[], his bigint[]) RETURNS tid[]
LANGUAGE plpgsql
AS $$
BEGIN
    RETURN (
        SELECT array_agg(d.tid)
        FROM unnest(xids, los, his) r(xid, lo, hi)
        CROSS JOIN LATERAL (
            SELECT d.ctid AS tid
            FROM {schema}.deliveries d
            WHERE d.sub = sub_num AND d.xid = r.xid AND d.seq >= r.lo AND d.seq < r.hi AND d.state::text = 'dead'
            ORDER BY d.sub, d.xid, d.seq
            FOR UPDATE
        ) d);
END $$;
