-- check_origin raises an error with SQLSTATE PS001 where the tables were not written by this cluster: a dump was restored, or
-- logical replication copied them. Transaction ids are others here, so the log could be neither written nor read without
-- losing messages; see repair. A session notes in fastpubsub.home for which table the answer was good, by its oid, and the
-- functions that publish and consume ask only where that is another: a restore makes another table, a promotion other sessions.
CREATE OR REPLACE FUNCTION {schema}.check_origin() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM {schema}.origin o WHERE o.messages = '{schema}.messages'::regclass AND o.xmin = o.written_by;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the messages in this schema were copied from another place: run fastpubsub repair'
            USING ERRCODE = 'PS001';
    END IF;
    PERFORM set_config('fastpubsub.home', '{schema}.messages'::regclass::oid::text, false);
END $$;
