-- filter_ranges picks from stretches of record batches the first `want` messages that match a filter, in order. claim
-- calls it with its planner settings; nobody else does.
--
-- It returns one stretch for each run of matching messages. end_xid and end_seq are the position where it stopped, at
-- the last match wanted or because 200 ms were over, else NULL: then everything was examined. Payloads may be large, and
-- others wait for the lock.
--
-- Publishing refuses what does not cast to jsonb. Should a payload fail all the same, everything is examined again with
-- each payload under a guard of its own: the bad one does not match, a warning names it, and the subscription goes on.
CREATE OR REPLACE FUNCTION {schema}.filter_ranges(
    topic int, path jsonpath, want int,
    INOUT slots smallint[], INOUT xids bigint[], INOUT los bigint[], INOUT his bigint[],
    OUT end_xid bigint, OUT end_seq bigint)
LANGUAGE plpgsql
AS $$
DECLARE
    total   int := cardinality(xids);
    guarded boolean := false;
    found_slots smallint[]; found_xids bigint[]; found_los bigint[]; found_his bigint[];
    start   int;
    step    int;
    found   int;
    part    record;
    until   timestamptz;
BEGIN
    LOOP
        found_slots := '{}'; found_xids := '{}'; found_los := '{}'; found_his := '{}';
        start := 1; step := 1; found := 0;
        until := clock_timestamp() + interval '200 ms';
        BEGIN
            -- Chunks that grow: a filter that matches often finds enough in the first record batch, one that matches
            -- rarely should not pay a statement for each.
            WHILE start <= total AND found < want LOOP
                SELECT array_agg(g.slot ORDER BY g.i) AS slots, array_agg(g.xid ORDER BY g.i) AS xids,
                       array_agg(g.lo ORDER BY g.i) AS los, array_agg(g.hi ORDER BY g.i) AS his, sum(g.hi - g.lo) AS n
                INTO part
                FROM (
                    SELECT k.slot, k.xid, min(k.seq) AS lo, max(k.seq) + 1 AS hi, min(k.i) AS i
                    FROM (
                        SELECT f.slot, f.xid, f.seq, f.i, f.seq - f.i AS run
                        FROM (
                            SELECT r.slot, r.xid, m.base + p.i - 1 AS seq,
                                   row_number() OVER (ORDER BY r.ord, p.i) AS i
                            FROM unnest(slots[start:start + step - 1], xids[start:start + step - 1],
                                        los[start:start + step - 1], his[start:start + step - 1])
                                 WITH ORDINALITY r(slot, xid, lo, hi, ord)
                            CROSS JOIN LATERAL (
                                SELECT m.base, m.payloads FROM {schema}.messages m
                                WHERE m.topic_num = topic AND m.slot = r.slot AND m.xid = r.xid
                                  AND m.base = (r.lo & ~65535::bigint)
                                LIMIT 1
                            ) m
                            CROSS JOIN LATERAL unnest(m.payloads) WITH ORDINALITY p(payload, i)
                            WHERE m.base + p.i - 1 >= r.lo AND m.base + p.i - 1 < r.hi
                              AND CASE WHEN guarded THEN {schema}.matches_guarded(p.payload, path, r.xid, m.base + p.i - 1)
                                       ELSE p.payload::jsonb @@ path END
                        ) f
                        WHERE f.i <= want - found
                    ) k
                    GROUP BY k.slot, k.xid, k.run
                ) g;
                IF part.n > 0 THEN
                    found := found + part.n;
                    found_slots := found_slots || part.slots;
                    found_xids := found_xids || part.xids;
                    found_los := found_los || part.los;
                    found_his := found_his || part.his;
                END IF;
                start := start + step;
                step := least(2 * step, 128);
                EXIT WHEN clock_timestamp() > until;  -- protection: a bounded stay under the lock
            END LOOP;
            EXIT;
        EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
            IF guarded THEN
                RAISE;
            END IF;
            guarded := true;  -- protection: a payload that does not cast
        END;
    END LOOP;

    IF found < want AND start <= total THEN
        -- Time was over behind a stretch that is not the last, and so goes to the end of its record batch; see scan_main.
        end_xid := xids[start - 1];
        end_seq := (his[start - 1] - 1) | 65535;
    ELSIF found >= want THEN
        end_xid := found_xids[cardinality(found_xids)];
        end_seq := found_his[cardinality(found_his)] - 1;
        -- The end of a record batch is left at the end of its numbers; see scan_main.
        FOR i IN 1..total LOOP
            IF xids[i] = end_xid AND his[i] - 1 = end_seq THEN
                IF i = total THEN
                    end_xid := NULL;  -- nothing was left over: the scan's own end stands
                    end_seq := NULL;
                ELSE
                    end_seq := end_seq | 65535;
                END IF;
                EXIT;
            END IF;
        END LOOP;
    END IF;
    slots := found_slots; xids := found_xids; los := found_los; his := found_his;
END $$;
