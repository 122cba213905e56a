-- publish appends messages to a topic's log in the caller's transaction, which may have any isolation level. It takes
-- no lock that two publishers share.
--
-- payloads are JSON objects as text, which the caller has checked (publish_jsonb takes jsonb instead). attributes is
-- NULL or has one element, or NULL, for each payload.
--
-- It returns where the messages are: message i, counted from 0, has the position (xid, bases[i / per_batch] + i %
-- per_batch). xid is NULL when there is no such topic. A large publish becomes several record batches, so that taking
-- ten messages never unpacks ten thousand.
CREATE OR REPLACE FUNCTION {schema}.publish(
    topic_id text, payloads text[], attributes jsonb[],
    OUT xid bigint, OUT bases bigint[], OUT per_batch int)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    max_messages CONSTANT int := 512;    -- in a record batch
    max_bytes    CONSTANT int := 65536;  -- in a record batch, before compression
    total        int := cardinality(payloads);
    topic        int;
    slot         smallint;
    base         bigint;
BEGIN
    IF total IS NULL OR total = 0 THEN
        RAISE EXCEPTION 'nothing to publish' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF array_ndims(payloads) <> 1 OR array_lower(payloads, 1) <> 1 OR array_position(payloads, NULL) IS NOT NULL
       OR array_ndims(attributes) <> 1 OR array_lower(attributes, 1) <> 1 THEN
        RAISE EXCEPTION 'payloads and attributes are arrays of one dimension that begin at 1; no payload is NULL'
            USING ERRCODE = 'array_subscript_error';
    END IF;
    IF cardinality(attributes) <> total THEN
        RAISE EXCEPTION 'attributes has % elements, payloads has %', cardinality(attributes), total
            USING ERRCODE = 'array_subscript_error';
    END IF;
    SELECT t.num INTO topic FROM {schema}.topics t WHERE t.id = topic_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    -- A commit that a crash forgets would give its transaction id, and with it message ids, to somebody else.
    IF current_setting('synchronous_commit') = 'off' THEN  -- protection: durable ids
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;

    xid := pg_current_xact_id()::text::bigint;
    slot := (SELECT last_value FROM {schema}.message_slot) & 3;
    per_batch := ceil(total / greatest(
        ceil(total / max_messages::float8), ceil(pg_column_size(payloads) / max_bytes::float8)));
    per_batch := greatest(per_batch, 1);
    IF per_batch = total THEN
        base := nextval('{schema}.message_base') << 16;
        bases := ARRAY[base];
        INSERT INTO {schema}.messages (xid, base, created_at, topic_num, n, slot, payloads, attributes)
        VALUES (xid, base, clock_timestamp(), topic, total, slot, payloads, attributes);
        RETURN;
    END IF;
    FOR start IN 1..total BY per_batch LOOP
        base := nextval('{schema}.message_base') << 16;
        bases := bases || base;
        INSERT INTO {schema}.messages (xid, base, created_at, topic_num, n, slot, payloads, attributes)
        VALUES (xid, base, clock_timestamp(), topic, least(per_batch, total - start + 1), slot,
                payloads[start:start + per_batch - 1], attributes[start:start + per_batch - 1]);
    END LOOP;
END $$;
