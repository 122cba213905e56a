-- claimed reads the messages that claim took last in this session, redeliveries first and then in the order in which it
-- took them, without any lock. One row a record batch: the messages of transaction xid in the stretches [los[i], his[i]),
-- their payloads and attributes in that order, and how often each was delivered. A redelivery has a row of its own. What is
-- gone by now, because it was acked, is skipped; what maintenance has moved out of the log meanwhile is in deliveries.
CREATE OR REPLACE FUNCTION {schema}.claimed()
RETURNS TABLE (xid bigint, los bigint[], his bigint[], created_at timestamptz, payloads text[], attributes text[], attempts int)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_incremental_sort = off
SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    claim  text[] := string_to_array(current_setting('fastpubsub.claim', true), '|');
    n      int;
    wanted int;
BEGIN
    IF claim[8] IS NOT NULL THEN
        RETURN QUERY
        SELECT w.xid, ARRAY[w.seq], ARRAY[w.seq + 1], d.created_at, ARRAY[d.payload],
               CASE WHEN d.attributes IS NOT NULL THEN ARRAY[d.attributes::text] END, w.attempts
        FROM unnest(claim[8]::bigint[], claim[9]::bigint[], claim[10]::int[]) w(xid, seq, attempts)
        CROSS JOIN LATERAL (
            SELECT d.created_at, d.payload, d.attributes
            FROM {schema}.deliveries d WHERE d.sub = claim[7]::int AND d.xid = w.xid AND d.seq = w.seq
            LIMIT 1
        ) d;
    END IF;
    IF claim[3] IS NULL THEN
        RETURN;
    END IF;
    IF claim[6] = 'all' THEN
        -- Without a filter there is one stretch for each record batch.
        RETURN QUERY
        SELECT w.xid, ARRAY[w.lo], ARRAY[w.hi], m.created_at,
               CASE WHEN w.hi - w.lo = m.n THEN m.payloads ELSE m.payloads[w.lo - m.base + 1:w.hi - m.base] END,
               CASE WHEN w.hi - w.lo = m.n THEN m.attributes ELSE m.attributes[w.lo - m.base + 1:w.hi - m.base] END::text[], 1
        FROM unnest(claim[2]::smallint[], claim[3]::bigint[], claim[4]::bigint[], claim[5]::bigint[]) w(slot, xid, lo, hi)
        CROSS JOIN LATERAL (
            SELECT m.created_at, m.n, m.base, m.payloads, m.attributes
            FROM {schema}.messages m
            WHERE m.topic_num = claim[1]::int AND m.slot = w.slot AND m.xid = w.xid AND m.base = (w.lo & ~65535::bigint)
            LIMIT 1
        ) m;
        GET DIAGNOSTICS n = ROW_COUNT;
        wanted := cardinality(claim[3]::bigint[]);
    ELSE
        RETURN QUERY
        SELECT w.xid, w.los, w.his, m.created_at,
               CASE WHEN cardinality(w.los) > 1 THEN
                        ARRAY(SELECT p.payload FROM unnest(m.payloads) WITH ORDINALITY p(payload, i)
                              WHERE w.base + p.i - 1 <@ w.wanted ORDER BY p.i)
                    WHEN w.los[1] = w.base AND w.his[1] = w.base + m.n THEN m.payloads
                    ELSE m.payloads[w.los[1] - w.base + 1:w.his[1] - w.base]
               END,
               CASE WHEN m.attributes IS NOT NULL THEN
                        ARRAY(SELECT a.attribute::text FROM unnest(m.attributes) WITH ORDINALITY a(attribute, i)
                              WHERE w.base + a.i - 1 <@ w.wanted ORDER BY a.i)
               END, 1
        FROM (
            SELECT r.slot, r.xid, r.lo & ~65535::bigint AS base, min(r.ord) AS ord, range_agg(int8range(r.lo, r.hi)) AS wanted,
                   array_agg(r.lo ORDER BY r.ord) AS los, array_agg(r.hi ORDER BY r.ord) AS his
            FROM unnest(claim[2]::smallint[], claim[3]::bigint[], claim[4]::bigint[], claim[5]::bigint[])
                 WITH ORDINALITY r(slot, xid, lo, hi, ord)
            GROUP BY r.slot, r.xid, r.lo & ~65535::bigint
        ) w
        CROSS JOIN LATERAL (
            SELECT m.created_at, m.n, m.payloads, m.attributes
            FROM {schema}.messages m
            WHERE m.topic_num = claim[1]::int AND m.slot = w.slot AND m.xid = w.xid AND m.base = w.base
            LIMIT 1
        ) m
        ORDER BY w.ord;
        GET DIAGNOSTICS n = ROW_COUNT;
        wanted := (SELECT count(DISTINCT (r.xid, r.lo & ~65535::bigint)) FROM unnest(claim[3]::bigint[], claim[4]::bigint[]) r(xid, lo));
    END IF;
    IF n < wanted THEN  -- protection: moved meanwhile
        RETURN QUERY
        SELECT d.xid, ARRAY[d.seq], ARRAY[d.seq + 1], d.created_at, ARRAY[d.payload],
               CASE WHEN d.attributes IS NOT NULL THEN ARRAY[d.attributes::text] END, d.attempts
        FROM unnest(claim[2]::smallint[], claim[3]::bigint[], claim[4]::bigint[], claim[5]::bigint[]) r(slot, xid, lo, hi)
        CROSS JOIN LATERAL (
            SELECT d.* FROM {schema}.deliveries d
            WHERE d.sub = claim[7]::int AND d.xid = r.xid AND d.seq >= r.lo AND d.seq < r.hi
              AND d.state::text = 'leased' AND d.attempts = 1
            ORDER BY d.sub, d.xid, d.seq
        ) d
        WHERE NOT EXISTS (SELECT FROM {schema}.messages m
                          WHERE m.topic_num = claim[1]::int AND m.slot = r.slot AND m.xid = r.xid AND m.base = (r.lo & ~65535::bigint));
    END IF;
END $$;
