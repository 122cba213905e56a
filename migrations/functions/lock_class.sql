-- lock_class is the first key of the advisory locks: those of subscriptions, whose numbers are the second, and that of
-- maintenance, which has 0. Two schemas never share a lock. The planner puts the body in its place.
CREATE OR REPLACE FUNCTION {schema}.lock_class() RETURNS int
LANGUAGE sql STABLE
AS $$
    SELECT '{schema}.leases'::regclass::oid::bigint::bit(32)::int
$$;
