-- create_subscription makes a subscription that gets what commits after it was created. It returns 'created',
-- 'exists', or 'no_topic'.
--
-- It needs READ COMMITTED: the cursor starts at a snapshot taken after the row was written.
CREATE OR REPLACE FUNCTION {schema}.create_subscription(
    sub_id text, topic_id text, filter json, filter_path jsonpath, max_delivery_attempts int,
    backoff_min_seconds int, backoff_max_seconds int, ack_deadline_seconds int)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_num int;
    own_xid bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'create_subscription needs isolation level read committed'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF current_setting('fastpubsub.home', true) IS DISTINCT FROM '{schema}.messages'::regclass::oid::text THEN
        PERFORM {schema}.check_origin();
    END IF;
    INSERT INTO {schema}.subscriptions (id, topic_num, filter, filter_path, max_delivery_attempts,
                                        backoff_min_seconds, backoff_max_seconds, ack_deadline_seconds)
    SELECT sub_id, t.num, $3, $4, $5, $6, $7, $8
    FROM {schema}.topics t WHERE t.id = topic_id
    ON CONFLICT (id) DO NOTHING
    RETURNING num INTO new_num;
    IF NOT FOUND THEN
        RETURN CASE WHEN EXISTS (SELECT FROM {schema}.subscriptions s WHERE s.id = sub_id)
                    THEN 'exists' ELSE 'no_topic' END;
    END IF;
    PERFORM pg_advisory_xact_lock({schema}.lock_class(), new_num);  -- see rotate
    own_xid := pg_current_xact_id()::text::bigint;
    INSERT INTO {schema}.cursors (gen, xid, seq, sub, slot, late_xids, late_seqs)
    SELECT 1, e.xid, e.seq, new_num, (SELECT last_value FROM {schema}.lease_slot) & 3, e.late_xids, e.late_seqs
    FROM {schema}.log_end(own_xid) e;
    RETURN 'created';
END $$;
