-- ack takes messages out of their leases, in the caller's transaction, which may have any isolation level. It returns
-- how many messages this call acked: each is acked once, by one call, which makes it a fence inside the caller's
-- transaction. NULL means that there is no such subscription; messages that are not leased are ignored, but for those whose
-- lease has run out: somebody has done the work. It goes by the id, whoever has the message now. (Of a made-up position only
-- seq counts if it falls into a lease; ids that were handed out have the right pair.) See ack_one, too.
--
-- Messages come as stretches: those of transaction xids[i] with los[i] <= seq < his[i], ascending by (xid, lo).
--
-- Which leases hold them, and what remains in each, is read without locks. Then the rows are updated in key order, so that
-- two calls that share leases cannot deadlock, each if what remains is still what was read; else it is read again. A lease
-- that another transaction has changed is waited for; REPEATABLE READ gets a serialization error then. What was found in no
-- lease is looked for in deliveries, likewise in key order, and by a statement of its own: it sees what a sweep moved there
-- meanwhile.
CREATE OR REPLACE FUNCTION {schema}.ack(sub_id text, xids bigint[], los bigint[], his bigint[]) RETURNS bigint
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
    sub_num      int;
    current_slot smallint;
    keys         record;
    wanted       int8multirange;
    old          int8multirange;
    taken        int8multirange;
    n            bigint;
    acked        bigint := 0;
    tids         tid[];
BEGIN
    SELECT s.num, q.last_value & 3 INTO sub_num, current_slot
    FROM {schema}.subscriptions s, {schema}.lease_slot q WHERE s.id = sub_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    keys := {schema}.find_leases(sub_num, current_slot, xids, los, his);
    IF cardinality(los) = 1 THEN
        wanted := int8multirange(int8range(los[1], his[1]));
    ELSE
        wanted := (SELECT range_agg(int8range(r.lo, r.hi)) FROM unnest(los, his) r(lo, hi));
    END IF;
    -- One row at a time, each by its whole key: a join would be planned by how large the table was when the session first
    -- acked, and may then read every lease of the subscription.
    FOR i IN 1..coalesce(cardinality(keys.slots), 0) LOOP  -- protection: lock order
        old := keys.remainings[i];
        LOOP
            taken := old * wanted;
            EXIT WHEN isempty(taken);
            IF taken = int8multirange(range_merge(taken)) THEN
                n := upper(taken) - lower(taken);
            ELSE
                n := (SELECT sum(upper(r) - lower(r)) FROM unnest(taken) r);
            END IF;
            UPDATE {schema}.leases l SET remaining = old - taken, acked = l.acked + n
            WHERE l.sub = sub_num AND l.slot = keys.slots[i] AND l.kind = keys.kinds[i]
              AND l.first_xid = keys.first_xids[i] AND l.first_seq = keys.first_seqs[i]
              AND l.remaining = old;  -- protection: acked once
            IF FOUND THEN
                acked := acked + n;
                EXIT;
            END IF;
            -- Somebody else has acked of this lease meanwhile.
            SELECT l.remaining INTO old FROM {schema}.leases l
            WHERE l.sub = sub_num AND l.slot = keys.slots[i] AND l.kind = keys.kinds[i]
              AND l.first_xid = keys.first_xids[i] AND l.first_seq = keys.first_seqs[i];
            EXIT WHEN NOT FOUND;
        END LOOP;
    END LOOP;
    IF acked = upper(wanted) - lower(wanted) OR acked = (SELECT sum(r.hi - r.lo) FROM unnest(los, his) r(lo, hi)) THEN
        RETURN acked;
    END IF;

    SELECT array_agg(d.tid) INTO tids
    FROM unnest(xids, los, his) r(xid, lo, hi)
    CROSS JOIN LATERAL (
        SELECT d.ctid AS tid
        FROM {schema}.deliveries d
        WHERE d.sub = sub_num AND d.xid = r.xid AND d.seq >= r.lo AND d.seq < r.hi AND d.state::text IN ('leased', 'expired')
        ORDER BY d.sub, d.xid, d.seq  -- protection: lock order of deliveries
        FOR UPDATE
    ) d;
    IF tids IS NOT NULL THEN
        UPDATE {schema}.deliveries d SET state = 'acked' WHERE d.ctid = ANY (tids);
        GET DIAGNOSTICS n = ROW_COUNT;
        acked := acked + n;
    END IF;
    RETURN acked;
END $$;
