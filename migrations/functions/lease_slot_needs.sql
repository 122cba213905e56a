-- lease_slot_needs is which subscriptions need a slot of leases and cursors: because their newest cursor is in it, or a lease
-- that has not been looked at by a sweep or moved by vacate.
CREATE OR REPLACE FUNCTION {schema}.lease_slot_needs(slot smallint) RETURNS TABLE (sub_num int, sub_id text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT s.num, s.id
    FROM {schema}.subscriptions s
    CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
    WHERE c.slot = lease_slot_needs.slot  -- protection: the newest cursor
       OR (SELECT true FROM {schema}.leases l
           WHERE l.slot = lease_slot_needs.slot AND l.sub = s.num AND l.deadline > '-infinity' AND l.deadline > c.swept_to  -- protection: not swept
           ORDER BY l.deadline LIMIT 1)  -- which keeps the primary key away, by which all leases would be read
       OR EXISTS (SELECT FROM {schema}.held_leases h WHERE h.slot = lease_slot_needs.slot AND h.sub = s.num);
END $$;
