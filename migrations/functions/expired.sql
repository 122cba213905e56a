-- expired is which subscriptions sweep has something to do for. It costs with the subscriptions that have leases, or leased or
-- acked rows in deliveries, and not with all that there are: it goes by the indexes from one number of a subscription to the next.
-- A subscription that nobody has consumed from since its leases went with their slot costs nothing, one whose leases have not
-- run out little.
--
-- A lease that was looked at is behind swept_to, so only what lies behind that counts; deadlines of leases never change, but to
-- '-infinity' where vacate has moved what was in one.
--
-- The times are those at the start of the call. What expires meanwhile is for the next one, or for whoever consumes.
CREATE OR REPLACE FUNCTION {schema}.expired() RETURNS TABLE (sub_id text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now_at CONSTANT timestamptz := {schema}.clock();
BEGIN
    RETURN QUERY
    WITH RECURSIVE
    -- Each of these has for every subscription the first that ends. The second key of the order keeps other indexes away, by which
    -- rows that do not count would be read.
    leasing (sub, deadline) AS (
        (SELECT l.sub, l.deadline FROM {schema}.leases l WHERE l.deadline > '-infinity' ORDER BY l.sub, l.deadline LIMIT 1)
        UNION ALL
        SELECT n.sub, n.deadline
        FROM leasing p
        CROSS JOIN LATERAL (
            SELECT l.sub, l.deadline FROM {schema}.leases l
            WHERE l.deadline > '-infinity' AND l.sub > p.sub ORDER BY l.sub, l.deadline LIMIT 1
        ) n
    ),
    leased (sub, next_at) AS (
        (SELECT d.sub, d.next_at FROM {schema}.deliveries d WHERE d.state = 'leased' ORDER BY d.sub, d.next_at LIMIT 1)
        UNION ALL
        SELECT n.sub, n.next_at
        FROM leased p
        CROSS JOIN LATERAL (
            SELECT d.sub, d.next_at FROM {schema}.deliveries d
            WHERE d.state = 'leased' AND d.sub > p.sub ORDER BY d.sub, d.next_at LIMIT 1
        ) n
    ),
    acked (sub) AS (
        (SELECT d.sub FROM {schema}.deliveries d WHERE d.state = 'acked' ORDER BY d.sub LIMIT 1)
        UNION ALL
        SELECT (SELECT d.sub FROM {schema}.deliveries d WHERE d.state = 'acked' AND d.sub > p.sub ORDER BY d.sub LIMIT 1)
        FROM acked p WHERE p.sub IS NOT NULL
    )
    SELECT s.id
    FROM (
        SELECT p.sub
        FROM leasing p
        CROSS JOIN LATERAL {schema}.newest_cursor(p.sub) c
        WHERE p.deadline <= now_at
          AND (SELECT true FROM {schema}.leases l
               WHERE l.sub = p.sub AND l.deadline > '-infinity' AND l.deadline > c.swept_to AND l.deadline <= now_at
               ORDER BY l.deadline LIMIT 1)  -- not EXISTS: as a join it would read all that was swept
        UNION SELECT h.sub FROM {schema}.held_leases h
        UNION SELECT p.sub FROM leased p WHERE p.next_at <= now_at
        UNION SELECT p.sub FROM acked p WHERE p.sub IS NOT NULL
    ) e
    CROSS JOIN LATERAL (SELECT s.id FROM {schema}.subscriptions s WHERE s.num = e.sub) s;
END $$;
