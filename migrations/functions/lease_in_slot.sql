-- lease_in_slot has a row if a lease holds messages of a slot of the log. The planner puts the body in its place. Ask for the
-- row by a scalar subquery: it would make a join of EXISTS, which compares each lease with each message of the slot.
CREATE OR REPLACE FUNCTION {schema}.lease_in_slot(
    message_slot smallint, topic int, first_xid bigint, first_seq bigint, last_xid bigint, last_seq bigint, remaining int8multirange)
RETURNS SETOF boolean
LANGUAGE sql STABLE
AS $$
    SELECT true
    FROM {schema}.messages m
    WHERE m.slot = message_slot AND m.topic_num = topic AND NOT isempty(remaining)
      AND (m.xid, m.base) >= (lease_in_slot.first_xid, lease_in_slot.first_seq & ~65535::bigint)
      AND (m.xid, m.base) <= (lease_in_slot.last_xid, lease_in_slot.last_seq)
      AND int8range(m.base, m.base + m.n) && lease_in_slot.remaining
    ORDER BY m.xid, m.base LIMIT 1
$$;
