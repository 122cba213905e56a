-- follow_timeline makes the bases of record batches jump ahead when the WAL has another timeline than at the last publish:
-- a standby was promoted, or the server was recovered to an earlier time. What the old primary published last may be
-- missing here while consumers know its ids, and no id may be used twice. publish calls it once a session, in the caller's
-- transaction, of any isolation level; it holds no lock when it returns. It also checks the origin, see there.
--
-- Sequences keep their new values whatever becomes of the transaction, so the lock is that of a subtransaction which is
-- rolled back.
CREATE OR REPLACE FUNCTION {schema}.follow_timeline() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    jump CONSTANT bigint := 1::bigint << 32;  -- more record batches than a standby lags by; there are 1 << 46
    here bigint := {schema}.current_timeline();
    last bigint;
BEGIN
    PERFORM {schema}.check_origin();
    IF here <> (SELECT last_value FROM {schema}.timeline) THEN  -- protection: new timeline
        BEGIN
            PERFORM pg_advisory_xact_lock('{schema}.timeline'::regclass::oid::bigint);
            last := (SELECT last_value FROM {schema}.timeline);
            IF last <> here THEN
                IF last <> 0 THEN
                    PERFORM setval('{schema}.message_base', (SELECT last_value FROM {schema}.message_base) + jump);
                END IF;
                PERFORM setval('{schema}.timeline', here);
            END IF;
            RAISE EXCEPTION 'lets go of the lock' USING ERRCODE = 'PS000';
        EXCEPTION WHEN SQLSTATE 'PS000' THEN
        END;
    END IF;
    PERFORM set_config('fastpubsub.timeline', '{schema}.messages'::regclass::oid::text, false);
END $$;
