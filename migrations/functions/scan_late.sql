-- scan_late examines up to budget messages of late transactions that have finished since, in log order. claim calls it
-- under the subscription's lock and with its planner settings; nobody else does.
--
-- late_xids ascend; late_seqs says how far each has been examined. It returns stretches [lo, hi) of record batches, the
-- finished transactions that it looked at (64 at most), and the position of the last message examined where the budget
-- ended the scan, else NULL: then all of them were examined whole. It ends with the record batch that fills room, too, a number
-- of bytes, and returns how many it has found.
CREATE OR REPLACE FUNCTION {schema}.scan_late(
    topic int, late_xids bigint[], late_seqs bigint[], budget int, room bigint,
    OUT slots smallint[], OUT xids bigint[], OUT los bigint[], OUT his bigint[],
    OUT end_xid bigint, OUT end_seq bigint, OUT finished bigint[], OUT bytes bigint)
LANGUAGE plpgsql
AS $$
DECLARE
    examined bigint;
    max_rows int := least(budget, 4);
BEGIN
    finished := ARRAY(
        SELECT x FROM (SELECT pg_current_snapshot() AS s OFFSET 0) c, unnest(late_xids) x
        WHERE pg_visible_in_snapshot(x::text::xid8, c.s)  -- protection: late until finished
        ORDER BY x LIMIT 64);
    IF cardinality(finished) = 0 THEN
        RETURN;
    END IF;
    LOOP
        SELECT array_agg(s.slot), array_agg(s.xid), array_agg(s.lo), array_agg(least(s.hi, s.hi - s.upto + budget)),
               max(s.upto), max(s.filled)
        INTO slots, xids, los, his, examined, bytes
        FROM (
            SELECT r.slot, r.xid, r.lo, r.hi, r.size, sum((r.hi - r.lo)::int) OVER log AS upto, sum(r.size) OVER log AS filled
            FROM (
                SELECT m.slot, m.xid, greatest(m.base, l.seq + 1) AS lo, m.base + m.n AS hi, m.size
                FROM unnest(late_xids, late_seqs) l(xid, seq)
                CROSS JOIN LATERAL (
                    SELECT m.slot, m.xid, m.base, m.n, coalesce(m.bytes, pg_column_size(m.payloads)) AS size
                    FROM {schema}.messages m
                    WHERE m.topic_num = topic AND m.xid = l.xid AND m.base >= (l.seq + 1) & ~65535::bigint
                    ORDER BY m.xid, m.base
                    LIMIT max_rows
                ) m
                WHERE l.xid = ANY (finished)
                ORDER BY m.xid, m.base
                LIMIT max_rows
            ) r
            WINDOW log AS (ORDER BY r.xid, r.lo)
        ) s
        WHERE s.upto - (s.hi - s.lo) < budget AND s.filled - s.size < room;  -- protection: bounded bytes
        EXIT WHEN examined IS NULL OR examined >= budget OR cardinality(xids) < max_rows;
        max_rows := least(budget, greatest(4 * max_rows, max_rows * budget::bigint / examined * 5 / 4 + 1));
    END LOOP;
    IF examined >= budget OR bytes >= room THEN
        end_xid := xids[cardinality(xids)];
        end_seq := his[cardinality(his)] - 1;
        IF examined <= budget THEN
            end_seq := end_seq | 65535;
        END IF;
    END IF;
END $$;
