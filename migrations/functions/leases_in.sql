-- leases_in is the leases of a subscription that hold messages of a slot of the log.
CREATE OR REPLACE FUNCTION {schema}.leases_in(sub_num int, topic int, swept_to timestamptz, message_slot smallint)
RETURNS TABLE (slot smallint, kind smallint, first_xid bigint, first_seq bigint)
LANGUAGE sql STABLE
AS $$
    SELECT l.slot, l.kind, l.first_xid, l.first_seq
    FROM {schema}.open_leases(sub_num, leases_in.swept_to) l
    WHERE NOT isempty(l.remaining)
      AND EXISTS (SELECT FROM {schema}.messages m
                  WHERE m.slot = message_slot AND m.topic_num = topic
                    AND (m.xid, m.base) >= (l.first_xid, l.first_seq & ~65535::bigint) AND (m.xid, m.base) <= (l.last_xid, l.last_seq)
                    AND int8range(m.base, m.base + m.n) && l.remaining
                  ORDER BY m.xid, m.base LIMIT 1)
$$;
