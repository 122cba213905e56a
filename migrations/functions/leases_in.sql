-- leases_in is the leases of a subscription that hold messages of a slot of the log.
CREATE OR REPLACE FUNCTION {schema}.leases_in(sub_num int, topic int, swept_to timestamptz, message_slot smallint)
RETURNS TABLE (slot smallint, kind smallint, first_xid bigint, first_seq bigint)
LANGUAGE sql STABLE
AS $$
    SELECT l.slot, l.kind, l.first_xid, l.first_seq
    FROM (
        SELECT l.slot, l.kind, l.first_xid, l.first_seq, l.last_xid, l.last_seq, l.remaining FROM {schema}.leases l
        WHERE l.sub = sub_num AND l.deadline > '-infinity' AND l.deadline > leases_in.swept_to
        UNION ALL
        SELECT l.slot, l.kind, l.first_xid, l.first_seq, l.last_xid, l.last_seq, l.remaining FROM {schema}.held_leases h
        CROSS JOIN LATERAL (
            SELECT l.* FROM {schema}.leases l
            WHERE l.sub = sub_num AND l.kind = h.kind AND l.first_xid = h.first_xid AND l.first_seq = h.first_seq
              AND l.slot = h.slot AND l.deadline <= leases_in.swept_to
            LIMIT 1
        ) l
        WHERE h.sub = sub_num
    ) l
    WHERE NOT isempty(l.remaining)
      AND EXISTS (SELECT FROM {schema}.messages m
                  WHERE m.slot = message_slot AND m.topic_num = topic
                    AND (m.xid, m.base) >= (l.first_xid, l.first_seq & ~65535::bigint) AND (m.xid, m.base) <= (l.last_xid, l.last_seq)
                    AND int8range(m.base, m.base + m.n) && l.remaining
                  ORDER BY m.xid, m.base LIMIT 1)
$$;
