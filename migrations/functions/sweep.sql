-- sweep does for a subscription what maintenance has to do, one bounded step of it: it ends what has expired, as claim does
-- for those who consume, also leases in deliveries, and counts and removes what was acked there. It takes the subscription's
-- lock, in a transaction of its own, READ COMMITTED, and waits for nobody but a second for that. A step that finds nothing
-- writes nothing. Rows that somebody has locked are passed over.
--
-- It returns 'ok', 'more' when there is more to do, 'busy', or 'no_subscription'; how many messages it made available
-- again, and how many dead.
CREATE OR REPLACE FUNCTION {schema}.sweep(sub_id text, OUT outcome text, OUT expired int, OUT died int)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '1s'
AS $$
DECLARE
    step  CONSTANT int := 1000;  -- rows that were acked
    class CONSTANT int := {schema}.lock_class();
    sub_num int := (SELECT s.num FROM {schema}.subscriptions s WHERE s.id = sub_id);
    sub     record;
    now_at  timestamptz;
    swept   record;
    tids    tid[];
    removed int;
BEGIN
    expired := 0; died := 0;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'sweep needs isolation level read committed' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF sub_num IS NULL THEN
        outcome := 'no_subscription';
        RETURN;
    END IF;
    -- Before the lock, which others want: what vacuum has not removed yet makes this search slow.
    BEGIN
        tids := ARRAY(
            SELECT d.ctid FROM {schema}.deliveries d
            WHERE d.sub = sub_num AND d.state = 'acked'
            LIMIT step
            FOR UPDATE SKIP LOCKED);
        DELETE FROM {schema}.deliveries d WHERE d.ctid = ANY (tids);
        GET DIAGNOSTICS removed = ROW_COUNT;
        PERFORM pg_advisory_xact_lock(class, sub_num);
    EXCEPTION WHEN lock_not_available THEN  -- nothing is removed, either
        outcome := 'busy';
        RETURN;
    END;
    now_at := {schema}.clock();
    SELECT s.topic_num, s.max_delivery_attempts, c.*,
           (SELECT (last_value & 3)::smallint FROM {schema}.lease_slot) AS current_slot
    INTO sub
    FROM {schema}.subscriptions s, {schema}.newest_cursor(sub_num) c
    WHERE s.num = sub_num;
    IF NOT FOUND THEN  -- deleted while we waited
        outcome := 'no_subscription';
        RETURN;
    END IF;
    now_at := greatest(now_at, sub.swept_to);

    swept := {schema}.sweep_leases(sub_num, sub.topic_num, sub.max_delivery_attempts, sub.swept_to, '-infinity', now_at);
    expired := swept.expired;
    died := swept.died;

    IF swept.looked OR removed > 0 THEN
        INSERT INTO {schema}.cursors (gen, xid, seq, sub, slot, late_xids, late_seqs, swept_to, due_to, full_at, acked)
        VALUES (sub.gen + 1, sub.xid, sub.seq, sub_num, sub.current_slot, sub.late_xids, sub.late_seqs,
                swept.swept_to, least(sub.due_to, swept.due_to), sub.full_at, sub.acked + swept.acked + removed);
    END IF;
    outcome := CASE WHEN swept.swept_to < now_at OR swept.due_to < now_at OR removed = step THEN 'more' ELSE 'ok' END;
END $$;
