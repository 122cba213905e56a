-- published shows the log one message a row, for people with psql. It reads what the reader's snapshot sees, in no
-- order of its own.
CREATE OR REPLACE VIEW {schema}.published AS
SELECT {schema}.message_id(m.xid, m.base + p.i - 1) AS id, t.id AS topic_id, m.created_at,
       p.payload::jsonb AS payload, m.attributes[p.i::int] AS attributes
FROM {schema}.messages m
JOIN {schema}.topics t ON t.num = m.topic_num
CROSS JOIN LATERAL unnest(m.payloads) WITH ORDINALITY p(payload, i);
