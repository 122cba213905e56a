-- dead_letters lists up to most messages of a subscription that gave up, oldest first, behind the first `skipped`. The position
-- breaks ties, so that two pages never show the same message while nothing changes. It ends before it has more than 64 MiB of
-- payloads, attributes and errors, but for the first message: a client holds all of it. The rest comes when that many more are
-- skipped.
--
-- Where there is nothing it returns a row of NULLs; none means that there is no such subscription.
CREATE OR REPLACE FUNCTION {schema}.dead_letters(sub_id text, skipped bigint, most int)
RETURNS TABLE (xid bigint, seq bigint, payload text, attributes text, attempts int, created_at timestamptz, last_error text, dead_at timestamptz)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    max_bytes CONSTANT int := 64 << 20;
    sub_num   int := (SELECT s.num FROM {schema}.subscriptions s WHERE s.id = sub_id);
    bytes     bigint := 0;
    listed    boolean := false;
BEGIN
    IF sub_num IS NULL THEN
        RETURN;
    END IF;
    FOR xid, seq, payload, attributes, attempts, created_at, last_error, dead_at IN
        SELECT d.xid, d.seq, d.payload, d.attributes::text, d.attempts, d.created_at, d.last_error, d.dead_at
        FROM {schema}.deliveries d
        WHERE d.sub = sub_num AND d.state = 'dead'
        ORDER BY d.dead_at, d.xid, d.seq
        OFFSET skipped LIMIT most
    LOOP
        bytes := bytes + octet_length(payload) + coalesce(octet_length(attributes), 0) + coalesce(octet_length(last_error), 0);
        EXIT WHEN listed AND bytes > max_bytes;
        listed := true;
        RETURN NEXT;
    END LOOP;
    IF NOT listed THEN
        SELECT INTO xid, seq, payload, attributes, attempts, created_at, last_error, dead_at;
        RETURN NEXT;
    END IF;
END $$;
