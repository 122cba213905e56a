-- grant_leases writes the lease rows for stretches that were claimed: one row for up to 64 of them, or one for each
-- message when `single`; these run out a microsecond apart, so that a sweep can end between them. A row of kind 1 holds
-- messages of one transaction only. claim calls it under the subscription's lock and with its planner settings; nobody
-- else does.
--
-- It returns NULL, so that claim can call it by an assignment. 64 keeps the row, which every ack writes again, near a
-- kilobyte.
CREATE OR REPLACE FUNCTION {schema}.grant_leases(
    sub int, kind smallint, slot smallint, consumer text, deadline timestamptz, single boolean,
    xids bigint[], los bigint[], his bigint[])
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    total int := cardinality(xids);
BEGIN
    IF NOT single AND (kind = 0 OR xids[1] = xids[total]) THEN
        FOR i IN 1..total BY 64 LOOP
            INSERT INTO {schema}.leases (first_xid, first_seq, last_xid, last_seq, deadline, sub, kind, slot, consumer, remaining)
            VALUES (xids[i], los[i], xids[least(i + 63, total)], his[least(i + 63, total)] - 1, deadline, sub, kind,
                    slot, consumer,
                    (SELECT range_agg(int8range(r.lo, r.hi)) FROM unnest(los[i:i + 63], his[i:i + 63]) r(lo, hi)));
        END LOOP;
        RETURN NULL;
    END IF;
    INSERT INTO {schema}.leases (first_xid, first_seq, last_xid, last_seq, deadline, sub, kind, slot, consumer, remaining)
    SELECT (array_agg(p.xid ORDER BY p.i))[1], (array_agg(p.lo ORDER BY p.i))[1],
           (array_agg(p.xid ORDER BY p.i DESC))[1], (array_agg(p.hi ORDER BY p.i DESC))[1] - 1,
           deadline + CASE WHEN single THEN 1 + min(p.i) ELSE 0 END * interval '1 us', sub, kind, slot, consumer,
           range_agg(int8range(p.lo, p.hi))
    FROM (
        SELECT o.xid, o.lo, o.hi, row_number() OVER (PARTITION BY o.part ORDER BY o.xid, o.lo) - 1 AS i, o.part
        FROM (
            SELECT r.xid, s.lo, s.hi, CASE WHEN kind = 1 THEN r.xid ELSE 0 END AS part
            FROM unnest(xids, los, his) r(xid, lo, hi)
            CROSS JOIN LATERAL (
                SELECT r.lo, r.hi WHERE NOT single
                UNION ALL
                SELECT q, q + 1 FROM generate_series(r.lo, r.hi - 1) q WHERE single
            ) s
        ) o
    ) p
    GROUP BY p.part, p.i / CASE WHEN single THEN 1 ELSE 64 END;
    RETURN NULL;
END $$;
