-- repair makes a schema work whose tables were copied from another cluster, by restoring a dump or by logical replication:
-- see check_origin. Positions in the log are transaction ids of that cluster. So whatever a subscription has not had yet is
-- moved to deliveries, as available, and whatever consumers hold as leased, with its ids, attempts and deadlines; then the
-- log, its leases and cursors begin anew. It does that in one transaction with all tables locked, READ COMMITTED; before it
-- has committed nothing is published or consumed. It reads and writes every message that somebody still waits for.
--
-- It returns 'ok', also when there is nothing to repair; 'replicated' while a subscription of logical replication still
-- writes here; 'locked' when it did not get a lock within 5 seconds; and how many messages it moved.
CREATE OR REPLACE FUNCTION {schema}.repair(OUT outcome text, OUT repaired boolean, OUT moved bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET jit = off
SET lock_timeout = '5s'
AS $$
DECLARE
    jump CONSTANT bigint := 1::bigint << 32;  -- past ids of what was published after the copy was made
    home CONSTANT oid := '{schema}.messages'::regclass;
    sub       record;
    lease     record;
    now_at    timestamptz;
    own_xid   bigint;
    written   bigint;
    counted   bigint;
    states    {schema}.cursors[] := '{}';
    state     {schema}.cursors;
BEGIN
    outcome := 'ok';
    repaired := false;
    moved := 0;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'repair needs isolation level read committed' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF EXISTS (SELECT FROM {schema}.origin o WHERE o.messages = home AND o.xmin = o.written_by) THEN
        RETURN;
    END IF;
    BEGIN
        PERFORM pg_advisory_xact_lock({schema}.lock_class(), 0);
        LOCK TABLE {schema}.origin, {schema}.topics, {schema}.subscriptions, {schema}.messages, {schema}.cursors,
            {schema}.leases, {schema}.held_leases, {schema}.deliveries, {schema}.slots;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN  -- who acks may have the tables in another order
        outcome := 'locked';
        RETURN;
    END;
    IF EXISTS (SELECT FROM {schema}.origin o WHERE o.messages = home AND o.xmin = o.written_by) THEN
        RETURN;  -- somebody else has been faster
    END IF;
    IF EXISTS (SELECT FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
               WHERE s.subenabled AND r.srrelid IN (SELECT c.oid FROM pg_class c WHERE c.relnamespace = to_regnamespace('{schema}'))) THEN
        outcome := 'replicated';
        RETURN;
    END IF;

    -- Logical replication does not copy sequences.
    PERFORM setval(pg_get_serial_sequence('{schema}.topics', 'num'), n.num) FROM (SELECT max(num) AS num FROM {schema}.topics) n
    WHERE n.num IS NOT NULL;
    PERFORM setval(pg_get_serial_sequence('{schema}.subscriptions', 'num'), n.num)
    FROM (SELECT max(num) AS num FROM {schema}.subscriptions) n WHERE n.num IS NOT NULL;
    PERFORM setval('{schema}.message_base', jump + greatest(
        (SELECT last_value FROM {schema}.message_base), (SELECT max(base) >> 16 FROM {schema}.messages),
        (SELECT max(seq) >> 16 FROM {schema}.deliveries), (SELECT max(first_seq) >> 16 FROM {schema}.leases)));

    now_at := {schema}.clock();
    own_xid := pg_current_xact_id()::text::bigint;
    FOR sub IN
        SELECT s.num, s.topic_num, s.filter_path, c.*
        FROM {schema}.subscriptions s CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
        ORDER BY s.num
    LOOP
        counted := 0;
        FOR lease IN SELECT l.* FROM {schema}.open_leases(sub.num, sub.swept_to) l LOOP
            counted := counted + lease.acked;
            IF NOT isempty(lease.remaining) THEN
                moved := moved + {schema}.to_deliveries(
                    sub.num, sub.topic_num, ARRAY[lease.first_xid], ARRAY[lease.first_seq], ARRAY[lease.last_xid], ARRAY[lease.last_seq],
                    lease.remaining, 'leased', 1, lease.deadline, NULL, lease.consumer, NULL);
            END IF;
        END LOOP;

        INSERT INTO {schema}.deliveries (xid, seq, next_at, created_at, sub, attempts, state, payload, attributes)
        SELECT m.xid, m.base + p.i - 1, now_at, m.created_at, sub.num, 0, 'available', p.payload, m.attributes[p.i::int]
        FROM {schema}.messages m
        CROSS JOIN LATERAL unnest(m.payloads) WITH ORDINALITY p(payload, i)
        WHERE m.topic_num = sub.topic_num
          AND ((m.xid, m.base + m.n - 1) > (sub.xid, sub.seq) OR m.xid = ANY (sub.late_xids))
          AND ((m.xid, m.base + p.i - 1) > (sub.xid, sub.seq)
               OR EXISTS (SELECT FROM unnest(sub.late_xids, sub.late_seqs) l(xid, seq)
                          WHERE l.xid = m.xid AND m.base + p.i - 1 > l.seq))
          AND (sub.filter_path IS NULL
               OR {schema}.matches_guarded(p.payload, sub.filter_path, m.xid, m.base + p.i - 1))
        ORDER BY m.xid, m.base, p.i;
        GET DIAGNOSTICS written = ROW_COUNT;
        moved := moved + written;

        SELECT sub.gen + 1 AS gen, e.xid, e.seq, sub.num AS sub, (SELECT last_value FROM {schema}.lease_slot) & 3 AS slot,
               e.late_xids, e.late_seqs, sub.swept_to, '-infinity'::timestamptz AS due_to, sub.acked + counted AS acked
        INTO state
        FROM {schema}.log_end(own_xid) e;
        states := states || state;
    END LOOP;

    TRUNCATE {schema}.messages, {schema}.cursors, {schema}.leases, {schema}.held_leases;
    INSERT INTO {schema}.cursors (gen, xid, seq, sub, slot, late_xids, late_seqs, swept_to, due_to, acked)
    SELECT s.gen, s.xid, s.seq, s.sub, s.slot, s.late_xids, s.late_seqs, s.swept_to, s.due_to, s.acked FROM unnest(states) s;
    UPDATE {schema}.slots s
    SET since = CASE WHEN s.slot = {schema}.current_slot(s.ring) THEN now_at END, until = NULL, unneeded_at = NULL, seen = NULL,
        waits_for = '{}';
    PERFORM setval('{schema}.timeline', coalesce({schema}.current_timeline(), 0));
    DELETE FROM {schema}.origin;
    INSERT INTO {schema}.origin (messages, written_by) VALUES (home, '0');
    UPDATE {schema}.origin SET written_by = xmin;  -- that of a subtransaction, if it runs in one
    repaired := true;
END $$;
