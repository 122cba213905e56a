-- truncate_slot gives the space of a ring's slot back, 'messages' or 'leases', when nothing in it is needed. Only maintenance
-- calls it, in a transaction of its own, READ COMMITTED. It waits for nobody for more than 50 ms, and while it waits for
-- the last lock, or has it, others wait for it.
--
-- It returns 'truncated'; 'empty', when there is nothing to do; 'current'; 'needed', see message_slot_needs and
-- lease_slot_needs; 'waiting', when transactions run that began while it was needed; 'locked', when somebody has a lock on
-- it, or may still write into it; 'busy' when other maintenance is at work. freed is in bytes, without indexes.
--
-- TRUNCATE is not subject to MVCC: a pg_dump whose snapshot is older than the last acknowledgement, or than what was
-- moved to deliveries, would find a message in neither place. So it waits for all transactions that run when nothing in the
-- slot is needed any more, but no longer than patience: a forgotten one must not fill the disk. They are known by their
-- virtual ids, since the snapshots of others cannot be seen without privileges, and those of readers not at all.
CREATE OR REPLACE FUNCTION {schema}.truncate_slot(ring text, slot smallint, patience interval, OUT outcome text, OUT freed bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
DECLARE
    class CONSTANT int := {schema}.lock_class();
    state record;
    tries int := 20;
    needed boolean;
BEGIN
    freed := 0;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'truncate_slot needs isolation level read committed' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM {schema}.check_origin();
    IF NOT pg_try_advisory_xact_lock(class, 0) THEN
        outcome := 'busy';
        RETURN;
    END IF;
    IF slot = {schema}.current_slot(ring) THEN
        outcome := 'current';
        RETURN;
    END IF;
    IF {schema}.slot_bytes(ring, slot) = 0 THEN
        outcome := 'empty';
        RETURN;
    END IF;
    SELECT s.* INTO state FROM {schema}.slots s WHERE s.ring = truncate_slot.ring AND s.slot = truncate_slot.slot;
    IF state.until IS NULL THEN  -- protection: rotation cut off
        -- It was left, but rotate was cut off before it said so; or somebody has written into it after it was truncated.
        UPDATE {schema}.slots s
        SET until = {schema}.clock(), unneeded_at = NULL, seen = NULL, waits_for = {schema}.subscription_holders()
        WHERE s.ring = truncate_slot.ring AND s.slot = truncate_slot.slot;
        outcome := 'locked';
        RETURN;
    END IF;

    -- Whoever writes into the slot, because it was current when he looked, must have ended, and nobody may begin to, before
    -- what he has written is looked for. What has come since the slot was found unneeded begins everything anew, also where it
    -- is not needed any more: a snapshot that sees it may.
    BEGIN
        IF ring = 'messages' THEN
            EXECUTE format('LOCK TABLE {schema}.%I IN SHARE MODE', 'messages_' || slot);  -- protection: writers
            IF {schema}.newer_messages(slot, state.seen) THEN  -- protection: nothing new
                state.unneeded_at := NULL;
            END IF;
        ELSIF state.unneeded_at IS NULL
              AND EXISTS (SELECT FROM pg_locks l WHERE l.virtualtransaction = ANY (state.waits_for)) THEN  -- protection: strays
            outcome := 'locked';
            RETURN;
        ELSIF EXISTS (SELECT FROM unnest({schema}.subscription_holders()) h WHERE h LIKE '-1/%') THEN
            outcome := 'locked';  -- a prepared transaction has another virtual id after a restart
            RETURN;
        END IF;
        needed := {schema}.slot_needed(ring, slot);
        IF NOT needed AND state.unneeded_at IS NULL THEN
            -- One that is being created cannot be seen, and may need what a transaction commits meanwhile.
            LOCK TABLE {schema}.subscriptions IN SHARE MODE;  -- protection: new subscriptions
            needed := {schema}.slot_needed(ring, slot);
        END IF;
    EXCEPTION WHEN lock_not_available THEN
        outcome := 'locked';
        RETURN;
    END;
    IF needed THEN  -- protection: needed
        UPDATE {schema}.slots s SET unneeded_at = NULL, seen = NULL, waits_for = '{}'
        WHERE s.ring = truncate_slot.ring AND s.slot = truncate_slot.slot AND s.unneeded_at IS NOT NULL;
        outcome := 'needed';
        RETURN;
    END IF;

    IF state.unneeded_at IS NULL THEN
        state.unneeded_at := {schema}.clock();
        state.seen := pg_current_snapshot();
        state.waits_for := ARRAY(
            SELECT l.virtualxid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
            WHERE l.locktype = 'virtualxid' AND l.granted AND l.pid <> pg_backend_pid()
              AND a.datname = current_database());  -- others cannot look into it
        UPDATE {schema}.slots s SET unneeded_at = state.unneeded_at, seen = state.seen, waits_for = state.waits_for
        WHERE s.ring = truncate_slot.ring AND s.slot = truncate_slot.slot;
        outcome := 'waiting';  -- for the next call at least, which has no lock on subscriptions
        RETURN;
    END IF;
    IF {schema}.clock() < state.unneeded_at + patience
       AND EXISTS (SELECT FROM pg_locks l
                   WHERE l.locktype = 'virtualxid' AND l.granted AND l.virtualxid = ANY (state.waits_for)) THEN  -- protection: older snapshots
        outcome := 'waiting';
        RETURN;
    END IF;

    BEGIN
        freed := {schema}.slot_bytes(ring, slot);
        IF ring = 'messages' THEN
            EXECUTE format('TRUNCATE {schema}.%I', 'messages_' || slot);
        ELSE
            -- Claims open cursors first, acks leases only, and some open them the other way round: to wait for the second
            -- lock with the first would be a deadlock.
            EXECUTE format('LOCK TABLE {schema}.%I', 'cursors_' || slot);
            LOOP
                BEGIN
                    EXECUTE format('LOCK TABLE {schema}.%I NOWAIT', 'leases_' || slot);
                    EXIT;
                EXCEPTION WHEN lock_not_available THEN
                    tries := tries - 1;
                    IF tries = 0 THEN
                        RAISE;
                    END IF;
                    PERFORM pg_sleep(0.002);
                END;
            END LOOP;
            EXECUTE format('TRUNCATE {schema}.%I, {schema}.%I', 'cursors_' || slot, 'leases_' || slot);
        END IF;
    EXCEPTION WHEN lock_not_available THEN
        freed := 0;
        outcome := 'locked';
        RETURN;
    END;
    UPDATE {schema}.slots s SET since = NULL, until = NULL, unneeded_at = NULL, seen = NULL, waits_for = '{}'
    WHERE s.ring = truncate_slot.ring AND s.slot = truncate_slot.slot;
    outcome := 'truncated';
END $$;
