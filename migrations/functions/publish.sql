-- publish appends messages to a topic's log in the caller's transaction, which may have any isolation level. It takes
-- no lock that two publishers share.
--
-- payloads are JSON objects as text, which the caller has checked (publish_jsonb takes jsonb instead). attributes is
-- NULL or has one element, or NULL, for each payload.
--
-- It returns where the messages are: their transaction, how many there are to a record batch, and the base of each record
-- batch. Message i, counted from 0, has the position (r[1], r[3 + i / r[2]] + i % r[2]). NULL means that there is no such
-- topic. A large publish becomes several record batches, so that taking ten messages never unpacks ten thousand.
CREATE OR REPLACE FUNCTION {schema}.publish(topic_id text, payloads text[], attributes jsonb[]) RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    max_messages CONSTANT int := 512;    -- in a record batch
    max_bytes    CONSTANT int := 65536;  -- in a record batch, before compression
    total        int := cardinality(payloads);
    per_batch    int := total;
    written      bigint[];
    topic        int;  -- the first record batch's: it may be deleted meanwhile, and created again
    positions    bigint[];
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
    IF current_setting('fastpubsub.timeline', true) IS DISTINCT FROM '{schema}.messages'::regclass::oid::text THEN
        PERFORM {schema}.follow_timeline();
    END IF;
    -- A commit that a crash forgets would give its transaction id, and with it message ids, to somebody else.
    IF current_setting('synchronous_commit') = 'off' THEN  -- protection: durable ids
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;

    IF total > max_messages OR pg_column_size(payloads) > max_bytes THEN
        per_batch := greatest(1, ceil(total / greatest(
            ceil(total / max_messages::float8), ceil(pg_column_size(payloads) / max_bytes::float8))));
    END IF;
    FOR start IN 1..total BY per_batch LOOP
        INSERT INTO {schema}.messages (xid, base, created_at, topic_num, n, slot, payloads, attributes, bytes)
        SELECT pg_current_xact_id()::text::bigint, nextval('{schema}.message_base') << 16, {schema}.clock(), t.num,
               least(per_batch, total - start + 1), s.last_value & 3,
               CASE WHEN per_batch = total THEN publish.payloads ELSE publish.payloads[start:start + per_batch - 1] END,
               CASE WHEN per_batch = total THEN publish.attributes ELSE publish.attributes[start:start + per_batch - 1] END,
               CASE WHEN per_batch = total THEN pg_column_size(publish.payloads) + coalesce(pg_column_size(publish.attributes), 0)
                    ELSE pg_column_size(publish.payloads[start:start + per_batch - 1])
                         + coalesce(pg_column_size(publish.attributes[start:start + per_batch - 1]), 0) END
        FROM {schema}.topics t, {schema}.message_slot s
        WHERE t.id = topic_id
          AND t.num = coalesce(topic, t.num)  -- protection: one topic
        RETURNING CASE WHEN start = 1 THEN ARRAY[messages.xid, per_batch, messages.base] ELSE ARRAY[messages.base] END, messages.topic_num
        INTO written, topic;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        positions := positions || written;
    END LOOP;
    RETURN positions;
END $$;
