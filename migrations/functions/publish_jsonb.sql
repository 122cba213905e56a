-- publish_jsonb is publish for other languages: the server has parsed the payloads, so nothing that could not be read
-- back gets into the log. jsonb rewrites white space, key order and numbers. It returns the messages' ids in input
-- order, NULL when there is no such topic.
CREATE OR REPLACE FUNCTION {schema}.publish_jsonb(topic_id text, payloads jsonb[], attributes jsonb[] DEFAULT NULL)
RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r bigint[];
BEGIN
    IF EXISTS (SELECT FROM unnest(payloads) p WHERE jsonb_typeof(p) IS DISTINCT FROM 'object') THEN
        RAISE EXCEPTION 'a payload is a JSON object' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF EXISTS (SELECT FROM unnest(attributes) a
               WHERE jsonb_typeof(a) <> 'object' OR a @? '$.* ? (@.type() <> "string")') THEN
        RAISE EXCEPTION 'attributes are JSON objects of strings' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    r := {schema}.publish(topic_id, payloads::text[], attributes);
    IF r IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT array_agg({schema}.message_id(r[1], r[3 + i / r[2]] + i % r[2]) ORDER BY i)
            FROM generate_series(0, cardinality(payloads) - 1) i);
END $$;
