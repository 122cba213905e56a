-- current_slot is the slot of a ring that is written to: the last value of a sequence, which is not subject to MVCC. The hot
-- functions read the sequences themselves.
CREATE OR REPLACE FUNCTION {schema}.current_slot(ring text) RETURNS smallint
LANGUAGE sql VOLATILE
AS $$
    SELECT (CASE ring WHEN 'messages' THEN m.last_value ELSE l.last_value END & 3)::smallint
    FROM {schema}.message_slot m, {schema}.lease_slot l
$$;
