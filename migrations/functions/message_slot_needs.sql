-- message_slot_needs is which subscriptions need a slot of the log: because messages in it lie beyond their cursor, or are of
-- a late transaction (backlog), or are leased (leased). What an open transaction has written there is not seen; it has a lock
-- on the slot. only_sub looks at that one alone.
CREATE OR REPLACE FUNCTION {schema}.message_slot_needs(slot smallint, only_sub text DEFAULT NULL)
RETURNS TABLE (sub_num int, sub_id text, backlog boolean, leased boolean)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN QUERY
    SELECT n.num, n.id, n.backlog, n.leased
    FROM (
        SELECT s.num, s.id,
               coalesce(
                   (SELECT true FROM {schema}.messages m
                    WHERE m.slot = message_slot_needs.slot AND m.topic_num = s.topic_num
                      AND (m.xid, m.base) >= (c.xid, (c.seq + 1) & ~65535::bigint)  -- protection: beyond the cursor
                    ORDER BY m.xid, m.base LIMIT 1),
                   (SELECT true FROM unnest(c.late_xids, c.late_seqs) l(xid, seq)
                    CROSS JOIN LATERAL (
                        SELECT FROM {schema}.messages m
                        WHERE m.slot = message_slot_needs.slot AND m.topic_num = s.topic_num AND m.xid = l.xid
                          AND m.base >= (l.seq + 1) & ~65535::bigint  -- protection: late
                        ORDER BY m.xid, m.base LIMIT 1
                    ) m
                    LIMIT 1),
                   false) AS backlog,
               coalesce(
                   (SELECT true FROM {schema}.open_leases(s.num, c.swept_to) l
                    WHERE (SELECT * FROM {schema}.lease_in_slot(message_slot_needs.slot, s.topic_num, l.first_xid, l.first_seq,
                                                                l.last_xid, l.last_seq, l.remaining))  -- protection: leased
                    LIMIT 1),
                   false) AS leased
        FROM {schema}.subscriptions s
        CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
        WHERE (only_sub IS NULL OR s.id = only_sub)
          AND (SELECT true FROM {schema}.messages m
               WHERE m.slot = message_slot_needs.slot AND m.topic_num = s.topic_num
               ORDER BY m.xid, m.base LIMIT 1)
    ) n
    WHERE n.backlog OR n.leased;
END $$;
