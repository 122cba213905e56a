-- matches_guarded is a filter's verdict on one payload that may not cast to jsonb; see filter_ranges.
CREATE OR REPLACE FUNCTION {schema}.matches_guarded(payload text, path jsonpath, xid bigint, seq bigint) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN payload::jsonb @@ path;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RAISE WARNING 'message % is not valid jsonb and matches no filter: %', {schema}.message_id(xid, seq), SQLERRM;
    RETURN false;
END $$;
