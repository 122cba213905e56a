-- find_leases says which leases of a subscription hold messages, without locks. Messages come as stretches, ascending;
-- see ack, which calls it with its planner settings. It returns the keys of the leases, ascending, and what remains in
-- each; NULL when there are none. one_xid says that all of these hold messages of transaction xids[1] alone.
--
-- The leases of kind 0 are disjoint, so a position is in the one with the greatest first position not behind it, if in
-- any. A late transaction's messages lie inside such a stretch without belonging to it; its leases are of kind 1. The
-- current slot is tried alone first: a lease there that covers the position is the one, and opening the other slots
-- takes longer than looking into this one.
CREATE OR REPLACE FUNCTION {schema}.find_leases(
    sub_num int, current_slot smallint, xids bigint[], los bigint[], his bigint[],
    OUT slots smallint[], OUT kinds smallint[], OUT first_xids bigint[], OUT first_seqs bigint[],
    OUT remainings int8multirange[], OUT one_xid boolean)
LANGUAGE plpgsql
AS $$
DECLARE
    total int := cardinality(xids);
    i     int := 1;
    pos   bigint;
    lease record;
    all_found boolean := true;
BEGIN
    IF total IS NULL OR total = 0 THEN
        RETURN;
    END IF;
    FOR j IN 2..total LOOP
        IF (xids[j], los[j]) < (xids[j - 1], los[j - 1]) THEN
            RAISE EXCEPTION 'stretches do not ascend' USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;

    one_xid := true;
    pos := los[1];
    WHILE i <= total LOOP
        SELECT l.slot, l.first_xid, l.first_seq, l.last_xid, l.last_seq, l.remaining INTO lease
        FROM {schema}.leases l
        WHERE l.sub = sub_num AND l.kind = 0 AND (l.first_xid, l.first_seq) <= (xids[i], pos) AND l.slot = current_slot
        ORDER BY l.first_xid DESC, l.first_seq DESC LIMIT 1;
        IF NOT FOUND OR (lease.last_xid, lease.last_seq) < (xids[i], pos) THEN
            SELECT l.slot, l.first_xid, l.first_seq, l.last_xid, l.last_seq, l.remaining INTO lease
            FROM {schema}.leases l
            WHERE l.sub = sub_num AND l.kind = 0 AND (l.first_xid, l.first_seq) <= (xids[i], pos)
            ORDER BY l.first_xid DESC, l.first_seq DESC LIMIT 1;
        END IF;
        IF NOT FOUND OR (lease.last_xid, lease.last_seq) < (xids[i], pos) THEN
            -- The stretch may begin outside and go on in a lease that begins inside.
            SELECT l.slot, l.first_xid, l.first_seq, l.last_xid, l.last_seq, l.remaining INTO lease
            FROM {schema}.leases l
            WHERE l.sub = sub_num AND l.kind = 0 AND (l.first_xid, l.first_seq) > (xids[i], pos)
              AND (l.first_xid, l.first_seq) < (xids[i], his[i])
            ORDER BY l.first_xid, l.first_seq LIMIT 1;
        END IF;
        IF FOUND THEN
            slots := slots || lease.slot;
            kinds := kinds || 0::smallint;
            first_xids := first_xids || lease.first_xid;
            first_seqs := first_seqs || lease.first_seq;
            remainings := remainings || lease.remaining;
            one_xid := one_xid AND lease.first_xid = xids[1] AND lease.last_xid = xids[1];
            -- On to the first position behind this lease.
            WHILE i <= total AND (xids[i], his[i] - 1) <= (lease.last_xid, lease.last_seq) LOOP
                all_found := all_found AND lease.remaining @> int8range(los[i], his[i]);
                i := i + 1;
                pos := los[i];
            END LOOP;
            IF i <= total AND (xids[i], pos) <= (lease.last_xid, lease.last_seq) THEN
                all_found := false;
                pos := lease.last_seq + 1;
            END IF;
        ELSE
            all_found := false;
            i := i + 1;
            pos := los[i];
        END IF;
    END LOOP;

    IF all_found THEN
        RETURN;  -- a message is in one lease
    END IF;
    -- A subscription rarely has late leases at all: one look tells.
    PERFORM FROM {schema}.leases l
    WHERE l.sub = sub_num AND l.kind = 1 AND l.first_xid >= xids[1] AND l.first_xid <= xids[total]
    ORDER BY l.first_xid, l.first_seq LIMIT 1;
    IF FOUND THEN
        FOR lease IN
            SELECT DISTINCT l.first_xid, l.first_seq, l.slot, l.remaining
            FROM unnest(xids, los, his) r(xid, lo, hi)
            CROSS JOIN LATERAL (
                (SELECT l.slot, l.first_xid, l.first_seq, l.last_seq, l.remaining FROM {schema}.leases l
                 WHERE l.sub = sub_num AND l.kind = 1 AND l.first_xid = r.xid AND l.first_seq <= r.lo
                 ORDER BY l.first_seq DESC LIMIT 1)
                UNION ALL
                (SELECT l.slot, l.first_xid, l.first_seq, l.last_seq, l.remaining FROM {schema}.leases l
                 WHERE l.sub = sub_num AND l.kind = 1 AND l.first_xid = r.xid
                   AND l.first_seq > r.lo AND l.first_seq < r.hi
                 ORDER BY l.first_seq LIMIT r.hi - r.lo)
            ) l
            WHERE l.last_seq >= r.lo
            ORDER BY l.first_xid, l.first_seq
        LOOP
            slots := slots || lease.slot;
            kinds := kinds || 1::smallint;
            first_xids := first_xids || lease.first_xid;
            first_seqs := first_seqs || lease.first_seq;
            remainings := remainings || lease.remaining;
            one_xid := one_xid AND lease.first_xid = xids[1];
        END LOOP;
    END IF;
END $$;
