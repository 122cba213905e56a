-- scan_main examines up to budget messages of a topic's log behind the cursor, in log order. claim calls it under the
-- subscription's lock and with its planner settings; nobody else does.
--
-- It returns stretches [lo, hi) of record batches, the position of the last message examined, and the transactions
-- beyond the cursor that were in progress in the snapshot that examined: those before the returned position are late.
-- A record batch that was examined to its end leaves the position at the end of its 65,536 numbers, so that the next
-- scan does not meet it again. xids is NULL when there is nothing. whole says that nothing is left that had been committed.
--
-- It ends with the record batch that fills room, a number of bytes, and returns how many it has found.
--
-- asked is how many messages the call is to give, of which others than those of the log may have been found already; 0 behind
-- a filter. Large calls keep to record batches: to begin and end inside costs them a fifth.
--
-- First it stops at the oldest transaction in progress, which keeps late ones rare: what lies before that is complete.
-- Only when there is nothing does it look beyond. Then rows and transactions in progress come from one statement, that
-- is, one snapshot, and it scans the gaps between those transactions, not what lies in them: a bulk load that is still
-- open would be read, row by row, on every call.
CREATE OR REPLACE FUNCTION {schema}.scan_main(
    topic int, cursor_xid bigint, cursor_seq bigint, budget int, asked int, room bigint,
    OUT slots smallint[], OUT xids bigint[], OUT los bigint[], OUT his bigint[],
    OUT end_xid bigint, OUT end_seq bigint, OUT open_xids bigint[], OUT whole boolean, OUT bytes bigint)
LANGUAGE plpgsql
AS $$
DECLARE
    -- Where the row that holds the cursor begins, or, at the end of a row's numbers, the next.
    cursor_base bigint := (cursor_seq + 1) & ~65535::bigint;
    examined    bigint;
    max_rows    int;
    first       record;
    open        boolean := false;
    lo          bigint;
    hi          bigint;
BEGIN
    -- Most often one row has as much as is wanted. If there is none, and no transaction is in progress either, one may have
    -- been when this was read, and have hidden what lies behind it: read again.
    FOR attempt IN 1..2 LOOP
        SELECT m.slot, m.xid, m.base, m.n, m.bytes INTO first
        FROM {schema}.messages m
        WHERE m.topic_num = topic AND (m.xid, m.base) >= (cursor_xid, cursor_base)
          AND m.xid < (SELECT coalesce(min(x::text::bigint), pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
                       FROM pg_snapshot_xip(pg_current_snapshot()) x
                       WHERE x::text::bigint > cursor_xid)  -- protection: stop before open
        ORDER BY m.xid, m.base
        LIMIT 1;
        EXIT WHEN FOUND;
        -- This may end before the next look: then that finds what it hid.
        open := EXISTS (SELECT FROM pg_snapshot_xip(pg_current_snapshot()) x WHERE x::text::bigint > cursor_xid);
        EXIT WHEN open;
        whole := attempt = 2;
    END LOOP;
    IF first.xid IS NOT NULL THEN
        lo := CASE WHEN first.xid = cursor_xid THEN greatest(first.base, cursor_seq + 1) ELSE first.base END;
        hi := first.base + first.n;
        IF asked >= 50 THEN
            IF hi - lo < budget AND lo > first.base AND hi - lo >= asked / 2 THEN
                budget := hi - lo;  -- what is left of one
            ELSIF hi - lo > budget AND budget < asked THEN
                -- Or what is left of it would be taken with a piece of the next, and so on.
                IF budget < asked / 2 THEN
                    RETURN;
                END IF;
                budget := asked / 2;
            END IF;
        END IF;
        IF hi - lo >= budget THEN
            bytes := first.bytes;
            slots := ARRAY[first.slot];
            xids := ARRAY[first.xid];
            los := ARRAY[lo];
            his := ARRAY[lo + budget];
            end_xid := first.xid;
            end_seq := CASE WHEN lo + budget = hi THEN first.base | 65535 ELSE lo + budget - 1 END;
            RETURN;
        END IF;

        max_rows := least(budget, 4);
        -- Where messages were published alone it takes as many rows as messages: ask for few, then for as many as the ones
        -- seen suggest.
        LOOP
            SELECT array_agg(s.slot), array_agg(s.xid), array_agg(s.lo), array_agg(least(s.hi, s.hi - s.upto + budget)),
                   max(s.upto), max(s.filled),
                   NOT EXISTS (SELECT FROM pg_snapshot_xip(pg_current_snapshot()) x WHERE x::text::bigint > cursor_xid)
            INTO slots, xids, los, his, examined, bytes, whole  -- of one snapshot
            FROM (
                SELECT r.slot, r.xid, r.lo, r.hi, r.size, sum((r.hi - r.lo)::int) OVER log AS upto, sum(r.size) OVER log AS filled
                FROM (
                    SELECT m.slot, m.xid, m.base, m.base + m.n AS hi, coalesce(m.bytes, pg_column_size(m.payloads)) AS size,
                           CASE WHEN m.xid = cursor_xid THEN greatest(m.base, cursor_seq + 1) ELSE m.base END AS lo
                    FROM {schema}.messages m
                    WHERE m.topic_num = topic AND (m.xid, m.base) >= (cursor_xid, cursor_base)
                      AND m.xid < (SELECT coalesce(min(x::text::bigint), pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
                                   FROM pg_snapshot_xip(pg_current_snapshot()) x
                                   WHERE x::text::bigint > cursor_xid)
                    ORDER BY m.xid, m.base
                    LIMIT max_rows
                ) r
                WINDOW log AS (ORDER BY r.xid, r.base)
            ) s
            WHERE s.upto - (s.hi - s.lo) < budget AND s.filled - s.size < room;  -- protection: bounded bytes in the log
            EXIT WHEN examined IS NULL OR examined >= budget OR cardinality(xids) < max_rows;
            max_rows := least(budget, greatest(4 * max_rows, max_rows * budget::bigint / examined * 5 / 4 + 1));
        END LOOP;
    END IF;

    IF xids IS NULL AND open THEN
        whole := true;
        max_rows := least(budget, 4);
        LOOP
            WITH snapshot AS MATERIALIZED (
                SELECT pg_current_snapshot() AS s
            ), open AS MATERIALIZED (
                SELECT x::text::bigint AS xid FROM snapshot, pg_snapshot_xip(s) x WHERE x::text::bigint > cursor_xid
            ), gaps AS MATERIALIZED (
                SELECT coalesce(lag(b.xid) OVER (ORDER BY b.xid), cursor_xid - 1) AS after, b.xid AS before
                FROM (SELECT xid FROM open UNION ALL SELECT pg_snapshot_xmax(s)::text::bigint FROM snapshot) b
            )
            SELECT array_agg(s.slot), array_agg(s.xid), array_agg(s.lo), array_agg(least(s.hi, s.hi - s.upto + budget)),
                   max(s.upto), max(s.filled), (SELECT array_agg(xid ORDER BY xid) FROM open)
            INTO slots, xids, los, his, examined, bytes, open_xids
            FROM (
                SELECT r.slot, r.xid, r.lo, r.hi, r.size, sum((r.hi - r.lo)::int) OVER log AS upto, sum(r.size) OVER log AS filled
                FROM (
                    SELECT m.slot, m.xid, m.base + m.n AS hi, m.size,
                           CASE WHEN m.xid = cursor_xid THEN greatest(m.base, cursor_seq + 1) ELSE m.base END AS lo
                    FROM gaps g
                    CROSS JOIN LATERAL (
                        SELECT m.slot, m.xid, m.base, m.n, coalesce(m.bytes, pg_column_size(m.payloads)) AS size
                        FROM {schema}.messages m
                        -- One row comparison: beside another condition on xid the index would begin at the cursor.
                        WHERE m.topic_num = topic
                          AND (m.xid, m.base) >= (greatest(g.after + 1, cursor_xid),
                                                  CASE WHEN g.after < cursor_xid THEN cursor_base ELSE 0 END)
                          AND m.xid < g.before
                        ORDER BY m.xid, m.base
                        LIMIT max_rows
                    ) m
                    WHERE g.before - g.after > 1
                    ORDER BY m.xid, m.base
                    LIMIT max_rows
                ) r
                WINDOW log AS (ORDER BY r.xid, r.lo)
            ) s
            WHERE s.upto - (s.hi - s.lo) < budget AND s.filled - s.size < room;  -- protection: bounded bytes beyond open ones
            EXIT WHEN examined IS NULL OR examined >= budget OR cardinality(xids) < max_rows;
            max_rows := least(budget, greatest(4 * max_rows, max_rows * budget::bigint / examined * 5 / 4 + 1));
        END LOOP;
    END IF;

    end_xid := xids[cardinality(xids)];
    end_seq := his[cardinality(his)] - 1;
    IF examined <= budget THEN
        end_seq := end_seq | 65535;
    END IF;
    whole := whole AND coalesce(examined, 0) < budget;
    whole := whole AND coalesce(bytes, 0) < room;
END $$;
