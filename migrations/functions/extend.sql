-- extend gives leased messages another ack deadline, in so many seconds from now, in the caller's transaction. 0 gives them
-- back: they are due at once, and this delivery does not count as an attempt. It returns how many; NULL means that there is
-- no such subscription. attempts[i] is the delivery that is meant, 0 any; see move_leased.
CREATE OR REPLACE FUNCTION {schema}.extend(
    sub_id text, xids bigint[], los bigint[], his bigint[], attempts int[], ack_deadline_seconds int) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    IF ack_deadline_seconds IS NULL OR ack_deadline_seconds < 0 THEN
        RAISE EXCEPTION 'ack_deadline_seconds must be at least 0' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN {schema}.move_leased(sub_id, xids, los, his, attempts,
                                CASE WHEN ack_deadline_seconds = 0 THEN 'give back' ELSE 'extend' END,
                                ack_deadline_seconds, NULL);
END $$;
