-- open_leases is the leases of a subscription that no sweep has ended yet: those that none has looked at, and those that
-- were held then. The planner puts the body in its place.
CREATE OR REPLACE FUNCTION {schema}.open_leases(sub_num int, swept_to timestamptz) RETURNS SETOF {schema}.leases
LANGUAGE sql STABLE
AS $$
    SELECT l.* FROM {schema}.leases l
    WHERE l.sub = sub_num AND l.deadline > '-infinity' AND l.deadline > open_leases.swept_to
    UNION ALL
    SELECT l.* FROM {schema}.held_leases h
    CROSS JOIN LATERAL (
        SELECT l.* FROM {schema}.leases l
        WHERE l.sub = sub_num AND l.kind = h.kind AND l.first_xid = h.first_xid AND l.first_seq = h.first_seq
          AND l.slot = h.slot AND l.deadline <= open_leases.swept_to
        LIMIT 1
    ) l
    WHERE h.sub = sub_num
$$;
