-- nack gives leased messages back as failed, in the caller's transaction: each waits for delay_seconds, or for the
-- subscription's backoff if that is NULL, and is then delivered again, or it is dead if its attempts are used up. It returns
-- how many; NULL means that there is no such subscription. attempts[i] is the delivery that is meant, 0 any; see
-- move_leased.
--
-- act 'bury' makes them dead at once, whatever attempts are left; with 'give back' this delivery does not count as an attempt,
-- and delay_seconds NULL is no delay.
CREATE OR REPLACE FUNCTION {schema}.nack(
    sub_id text, xids bigint[], los bigint[], his bigint[], attempts int[], delay_seconds int, error text,
    act text DEFAULT 'retry') RETURNS bigint
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
    IF delay_seconds < 0 THEN
        RAISE EXCEPTION 'delay_seconds must be at least 0' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF act IS NULL OR act NOT IN ('retry', 'bury', 'give back') THEN
        RAISE EXCEPTION 'act must be retry, bury or give back' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN {schema}.move_leased(sub_id, xids, los, his, attempts, act, delay_seconds, error);
END $$;
