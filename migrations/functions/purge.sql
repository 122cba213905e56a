-- purge removes messages from the dead letter queue for good. What is not dead is passed over. It returns how many; NULL
-- means that there is no such subscription. Rows are locked in key order.
CREATE OR REPLACE FUNCTION {schema}.purge(sub_id text, xids bigint[], los bigint[], his bigint[]) RETURNS bigint
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
    sub_num int := (SELECT s.num FROM {schema}.subscriptions s WHERE s.id = sub_id);
    tids    tid[];
    n       bigint;
BEGIN
    IF sub_num IS NULL THEN
        RETURN NULL;
    END IF;
    tids := {schema}.lock_dead(sub_num, xids, los, his);
    DELETE FROM {schema}.deliveries d WHERE d.ctid = ANY (tids);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
