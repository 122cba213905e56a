-- to_deliveries writes messages that were taken out of leases to deliveries, all in the same state, and returns how many.
-- The caller has taken them in this transaction, so nobody else can be writing the same. attempts is 1 for what was
-- delivered, 0 for what counts as not delivered.
--
-- The messages are those whose seq is in taken, in the stretches of the log from (from_xids[i], from_seqs[i]) to
-- (to_xids[i], to_seqs[i]). A message may be in several of these: one of a late transaction lies in the stretch of a
-- lease of the main scan, too.
CREATE OR REPLACE FUNCTION {schema}.to_deliveries(
    sub int, topic int, from_xids bigint[], from_seqs bigint[], to_xids bigint[], to_seqs bigint[], taken int8multirange,
    state {schema}.delivery_state, attempts int, next_at timestamptz, dead_at timestamptz, consumer text, error text)
RETURNS int
LANGUAGE plpgsql
AS $$
DECLARE
    written int;
    wanted  bigint := (SELECT sum(upper(r) - lower(r)) FROM unnest(taken) r);
BEGIN
    IF wanted <= 3 AND from_xids[1] = ALL (from_xids) AND from_xids[1] = ALL (to_xids) THEN
        -- To unpack a whole record batch for one message takes as long as all the rest.
        INSERT INTO {schema}.deliveries (xid, seq, next_at, created_at, dead_at, sub, attempts, state, consumer,
                                         payload, attributes, last_error)
        SELECT from_xids[1], q.seq, $10, m.created_at, $11, $1, $9, $8, $12,
               m.payloads[q.seq - m.base + 1], m.attributes[q.seq - m.base + 1], $13
        FROM unnest(taken) r
        CROSS JOIN LATERAL generate_series(lower(r), upper(r) - 1) q(seq)
        CROSS JOIN LATERAL (
            SELECT m.base, m.created_at, m.payloads, m.attributes
            FROM {schema}.messages m
            WHERE m.topic_num = topic AND m.xid = from_xids[1] AND m.base = q.seq & ~65535::bigint AND q.seq < m.base + m.n
            LIMIT 1
        ) m
        ON CONFLICT ON CONSTRAINT deliveries_pkey DO NOTHING;
    ELSE
        INSERT INTO {schema}.deliveries (xid, seq, next_at, created_at, dead_at, sub, attempts, state, consumer,
                                         payload, attributes, last_error)
        SELECT m.xid, m.base + p.i - 1, $10, m.created_at, $11, $1, $9, $8, $12, p.payload, m.attributes[p.i::int], $13
        FROM (
            -- Each record batch is unpacked once, not for every lease in it.
            SELECT DISTINCT r.from_xid, r.from_seq & ~65535::bigint AS from_base, r.to_xid, r.to_seq & ~65535::bigint AS to_base
            FROM unnest(from_xids, from_seqs, to_xids, to_seqs) r(from_xid, from_seq, to_xid, to_seq)
        ) s
        CROSS JOIN LATERAL (
            SELECT m.xid, m.base, m.n, m.created_at, m.payloads, m.attributes
            FROM {schema}.messages m
            WHERE m.topic_num = topic
              AND (m.xid, m.base) >= (s.from_xid, s.from_base) AND (m.xid, m.base) <= (s.to_xid, s.to_base)
              AND int8range(m.base, m.base + m.n) && taken
            ORDER BY m.xid, m.base
        ) m
        CROSS JOIN LATERAL unnest(m.payloads) WITH ORDINALITY p(payload, i)
        WHERE m.base + p.i - 1 <@ taken
        ON CONFLICT ON CONSTRAINT deliveries_pkey DO NOTHING;
    END IF;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written <> wanted THEN  -- protection: nothing is lost on the way
        RAISE EXCEPTION '% of % messages of leases are in the log', written, wanted USING ERRCODE = 'data_corrupted';
    END IF;
    RETURN written;
END $$;
