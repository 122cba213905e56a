-- rotate moves a ring, 'messages' or 'leases', on to its next slot if the current one has been so for older_than or has grown
-- to max_bytes, and if the next one is empty. Only maintenance calls it; see truncate_slot. It takes no lock but that of
-- maintenance, and nobody waits for it.
--
-- It returns 'rotated'; 'young' when the current slot is not old and large enough, or is empty; 'full' when the next one is
-- not empty; 'busy' when other maintenance is at work.
--
-- A sequence says which slot is current. setval writes exactly that value to the WAL; nextval may skip some after a crash.
CREATE OR REPLACE FUNCTION {schema}.rotate(ring text, older_than interval, max_bytes bigint) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    class   CONSTANT int := {schema}.lock_class();
    now_at  CONSTANT timestamptz := {schema}.clock();
    counter CONSTANT regclass := CASE ring WHEN 'messages' THEN '{schema}.message_slot' ELSE '{schema}.lease_slot' END;
    number  bigint;
    current record;
BEGIN
    PERFORM {schema}.check_origin();
    IF NOT pg_try_advisory_xact_lock(class, 0) THEN
        RETURN 'busy';
    END IF;
    number := CASE ring WHEN 'messages' THEN (SELECT last_value FROM {schema}.message_slot)
                        ELSE (SELECT last_value FROM {schema}.lease_slot) END;
    SELECT s.since, {schema}.slot_bytes(s.ring, s.slot) AS bytes INTO current
    FROM {schema}.slots s WHERE s.ring = rotate.ring AND s.slot = number & 3;
    -- That an empty one is not left is a rule, too: somebody may be about to write into it.
    IF current.bytes = 0 OR current.since > now_at - older_than AND current.bytes < max_bytes THEN
        RETURN 'young';
    END IF;
    IF {schema}.slot_bytes(ring, ((number + 1) & 3)::smallint) > 0 THEN
        RETURN 'full';
    END IF;
    PERFORM setval(counter, number + 1);
    UPDATE {schema}.slots s SET since = now_at, until = NULL, unneeded_at = NULL, seen = NULL, waits_for = '{}'
    WHERE s.ring = rotate.ring AND s.slot = (number + 1) & 3;
    -- Those who have a lock now may have read the old one.
    UPDATE {schema}.slots s
    SET until = now_at, unneeded_at = NULL, seen = NULL,
        waits_for = {schema}.subscription_holders()
    WHERE s.ring = rotate.ring AND s.slot = number & 3;
    RETURN 'rotated';
END $$;
