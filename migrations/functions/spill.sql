-- spill moves messages that a subscription has not had yet from the log to deliveries, about 1,000 a call, so that the slot
-- of the log that has them can be truncated: what finished late transactions left, then what lies beyond the cursor. It is
-- a claim whose messages do not go to a consumer, and that does not count as a delivery. Maintenance calls it, in a
-- transaction of its own, READ COMMITTED.
--
-- It returns what claim returns, and how many messages it moved.
CREATE OR REPLACE FUNCTION {schema}.spill(sub_id text, OUT outcome text, OUT moved int)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    claimed text[];
    sub     record;
    xids    bigint[];
    los     bigint[];
    his     bigint[];
    keys    record;
    taken   int8multirange;
BEGIN
    moved := 0;
    outcome := {schema}.claim(sub_id, '', 1000, NULL, false, true);
    claimed := string_to_array(current_setting('fastpubsub.claim'), '|');
    PERFORM set_config('fastpubsub.claim', '', false);
    IF outcome NOT IN ('ok', 'more') OR claimed[3] IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(r.xid ORDER BY r.xid, r.lo), array_agg(r.lo ORDER BY r.xid, r.lo), array_agg(r.hi ORDER BY r.xid, r.lo),
           range_agg(int8range(r.lo, r.hi))
    INTO xids, los, his, taken
    FROM unnest(claimed[3]::bigint[], claimed[4]::bigint[], claimed[5]::bigint[]) r(xid, lo, hi);
    SELECT s.num, s.topic_num, (SELECT (last_value & 3)::smallint FROM {schema}.lease_slot) AS current_slot INTO sub
    FROM {schema}.subscriptions s WHERE s.id = sub_id;
    IF NOT FOUND THEN  -- deleted meanwhile
        outcome := 'no_subscription';
        RETURN;
    END IF;
    moved := {schema}.to_deliveries(sub.num, sub.topic_num, xids, los, xids, his, taken, 'available', 0, {schema}.clock(), NULL, NULL, NULL);
    keys := {schema}.find_leases(sub.num, sub.current_slot, xids, los, his);
    FOR i IN 1..cardinality(keys.slots) LOOP
        UPDATE {schema}.leases l SET remaining = l.remaining - taken, deadline = '-infinity'
        WHERE l.sub = sub.num AND l.slot = keys.slots[i] AND l.kind = keys.kinds[i]
          AND l.first_xid = keys.first_xids[i] AND l.first_seq = keys.first_seqs[i] AND l.remaining && taken;
    END LOOP;
END $$;
