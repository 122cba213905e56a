-- ack_one is ack of one message that has a lease row of its own, as those that are acked inside transactions mostly have: it needs no
-- search, and no other lease is waited for. What is not found in such a row is left to ack, and so is all that ack says: the
-- result is the same for every message.
--
-- Each partition has a statement of its own: an UPDATE of the whole table opens all of them. Only what these statements need is
-- set, since each setting costs, too: the condition has the whole primary key, which leaves nothing to sort or to combine, but
-- an empty partition that somebody has vacuumed looks best read as a whole. The function that reads the sequence needs no plan.
CREATE OR REPLACE FUNCTION {schema}.ack_one(sub_id text, xid bigint, seq bigint) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    -- NULL before the first rotation.
    current_slot CONSTANT bigint := coalesce(pg_sequence_last_value('{schema}.lease_slot'::regclass), 0) & 3;
BEGIN
    IF current_slot = 0 THEN
        UPDATE {schema}.leases_0 l SET remaining = '{}', acked = l.acked + 1
        WHERE l.sub = (SELECT s.num FROM {schema}.subscriptions s WHERE s.id = sub_id) AND l.slot = 0 AND l.kind = 0
          AND l.first_xid = xid AND l.first_seq = seq AND l.last_xid = xid AND l.last_seq = seq AND NOT isempty(l.remaining);
    ELSIF current_slot = 1 THEN
        UPDATE {schema}.leases_1 l SET remaining = '{}', acked = l.acked + 1
        WHERE l.sub = (SELECT s.num FROM {schema}.subscriptions s WHERE s.id = sub_id) AND l.slot = 1 AND l.kind = 0
          AND l.first_xid = xid AND l.first_seq = seq AND l.last_xid = xid AND l.last_seq = seq AND NOT isempty(l.remaining);
    ELSIF current_slot = 2 THEN
        UPDATE {schema}.leases_2 l SET remaining = '{}', acked = l.acked + 1
        WHERE l.sub = (SELECT s.num FROM {schema}.subscriptions s WHERE s.id = sub_id) AND l.slot = 2 AND l.kind = 0
          AND l.first_xid = xid AND l.first_seq = seq AND l.last_xid = xid AND l.last_seq = seq AND NOT isempty(l.remaining);
    ELSE
        UPDATE {schema}.leases_3 l SET remaining = '{}', acked = l.acked + 1
        WHERE l.sub = (SELECT s.num FROM {schema}.subscriptions s WHERE s.id = sub_id) AND l.slot = 3 AND l.kind = 0
          AND l.first_xid = xid AND l.first_seq = seq AND l.last_xid = xid AND l.last_seq = seq AND NOT isempty(l.remaining);
    END IF;
    IF FOUND THEN
        RETURN 1;
    END IF;
    RETURN {schema}.ack(sub_id, ARRAY[xid], ARRAY[seq], ARRAY[seq + 1]);
END $$;
