-- subscription_holders is who has the lock of a subscription, or waits for one, by virtual transaction. Whoever changes a
-- subscription reads under its lock which slot of leases is the current one, and may yet write into that.
CREATE OR REPLACE FUNCTION {schema}.subscription_holders() RETURNS text[]
LANGUAGE sql VOLATILE
AS $$
    SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{}')
    FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid = '{schema}.leases'::regclass::oid AND l.objid <> 0
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
$$;
