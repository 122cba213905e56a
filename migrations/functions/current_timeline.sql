-- current_timeline is the timeline of the WAL, or NULL where the server does not tell: some managed ones, whose standbys
-- share the storage and lose nothing when they are promoted.
CREATE OR REPLACE FUNCTION {schema}.current_timeline() RETURNS bigint
LANGUAGE plpgsql
AS $$
BEGIN
    RETURN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;
