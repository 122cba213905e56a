-- vacate moves what a subscription has in a slot of leases and cursors out of it, a step of 500 leases or some 1,000
-- messages at a time: leases that no sweep has looked at go to deliveries, as leased; what was acked of them goes to the
-- cursor, and that to the current slot. With a slot of the log instead, leases that hold messages of it go to deliveries.
-- Maintenance calls it. It takes the subscription's lock, in a transaction of its own, READ COMMITTED, and waits for nobody
-- but a second for that. Rows that somebody has locked stay where they are.
--
-- It returns 'ok', 'more' when there is more to do, 'busy' or 'no_subscription', and how many messages it moved.
CREATE OR REPLACE FUNCTION {schema}.vacate(
    sub_id text, lease_slot smallint, message_slot smallint, OUT outcome text, OUT moved int)
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
    step  CONSTANT int := 500;
    max_messages CONSTANT int := 1000;
    class CONSTANT int := {schema}.lock_class();
    sub_num int := (SELECT s.num FROM {schema}.subscriptions s WHERE s.id = sub_id);
    sub     record;
    lease   record;
    found_n int := 0;
    counted bigint := 0;
    due_to  timestamptz;
    done    text;
BEGIN
    moved := 0;
    done := set_config('synchronous_commit', 'off', true);  -- what it moves is in one of two places in any case
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'vacate needs isolation level read committed' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF sub_num IS NULL THEN
        outcome := 'no_subscription';
        RETURN;
    END IF;
    BEGIN
        PERFORM pg_advisory_xact_lock(class, sub_num);
    EXCEPTION WHEN lock_not_available THEN
        outcome := 'busy';
        RETURN;
    END;
    SELECT s.topic_num, c.*, (SELECT (last_value & 3)::smallint FROM {schema}.lease_slot) AS current_slot
    INTO sub
    FROM {schema}.subscriptions s, {schema}.newest_cursor(sub_num) c
    WHERE s.num = sub_num;
    IF NOT FOUND THEN  -- deleted while we waited
        outcome := 'no_subscription';
        RETURN;
    END IF;

    -- Those that are held are for a sweep. In the order of the deadlines what is in an old slot of the log comes first, so that
    -- a step need not look at all that is leased.
    FOR lease IN
        SELECT l.ctid AS tid, l.slot, l.first_xid, l.first_seq, l.last_xid, l.last_seq, l.remaining, l.acked, l.deadline, l.consumer
        FROM {schema}.leases l
        WHERE l.sub = sub_num AND l.deadline > '-infinity' AND l.deadline > sub.swept_to
          AND l.slot >= coalesce(lease_slot, 0) AND l.slot <= coalesce(lease_slot, 3)
          AND (message_slot IS NULL
               OR (SELECT * FROM {schema}.lease_in_slot(message_slot, sub.topic_num, l.first_xid, l.first_seq,
                                                        l.last_xid, l.last_seq, l.remaining)))
        ORDER BY l.deadline
        LIMIT step
        FOR UPDATE SKIP LOCKED
    LOOP
        found_n := found_n + 1;
        due_to := least(due_to, lease.deadline);
        IF NOT isempty(lease.remaining) THEN
            moved := moved + {schema}.to_deliveries(
                sub_num, sub.topic_num, ARRAY[lease.first_xid], ARRAY[lease.first_seq], ARRAY[lease.last_xid], ARRAY[lease.last_seq],
                lease.remaining, 'leased', 1, lease.deadline, NULL, lease.consumer, NULL);
        END IF;
        counted := counted + lease.acked;
        -- Nobody looks at it again.
        UPDATE {schema}.leases l SET remaining = '{}', acked = 0, deadline = '-infinity'
        WHERE l.slot = lease.slot AND l.ctid = lease.tid;
        EXIT WHEN moved >= max_messages;
    END LOOP;
    IF found_n > 0 OR sub.slot = lease_slot THEN
        INSERT INTO {schema}.cursors (gen, xid, seq, sub, slot, late_xids, late_seqs, swept_to, due_to, full_at, acked)
        VALUES (sub.gen + 1, sub.xid, sub.seq, sub_num, sub.current_slot, sub.late_xids, sub.late_seqs,
                sub.swept_to, least(sub.due_to, due_to), sub.full_at, sub.acked + counted);
    END IF;
    outcome := CASE WHEN found_n = step OR moved >= max_messages THEN 'more' ELSE 'ok' END;
END $$;
