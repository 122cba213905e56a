-- move_leased is what nack and extend share: it takes messages that are leased from whoever has them, in the caller's
-- transaction, which may have any isolation level. It returns how many, NULL when there is no such subscription.
--
-- act says what becomes of them: 'retry' in `seconds`, or after the backoff if that is NULL, or dead when attempts are used
-- up; 'bury', dead at once; 'extend' by `seconds` from now; 'give back', due in `seconds`, or at once if that is NULL, with one
-- attempt less.
--
-- Messages come as for ack. attempts[i] is the delivery that is meant: where it is not the current one, the message is
-- passed over; 0 stands for any. So are messages whose lease has run out.
--
-- The order is that of ack: leases by key, then, in a statement of its own, deliveries by key.
CREATE OR REPLACE FUNCTION {schema}.move_leased(
    sub_id text, xids bigint[], los bigint[], his bigint[], attempts int[], act text, seconds int, error text)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    sub          record;
    now_at       timestamptz := {schema}.clock();
    swept_to     timestamptz;
    keys         record;
    wanted       int8multirange;
    old          int8multirange;
    taken        int8multirange;
    who          text;
    last_who     text;
    pending      int8multirange := '{}';  -- taken from last_who, not yet in deliveries
    moved        int8multirange := '{}';
    due          record;
    n            bigint := 0;
    updated      bigint;
    -- What becomes of messages in leases, whose attempt is the first.
    new_state    {schema}.delivery_state;
    new_attempts int := CASE act WHEN 'give back' THEN 0 ELSE 1 END;
    new_next_at  timestamptz;
    new_dead_at  timestamptz;
BEGIN
    SELECT s.num, s.topic_num, s.max_delivery_attempts, s.backoff_min_seconds, s.backoff_max_seconds,
           (q.last_value & 3)::smallint AS slot
    INTO sub
    FROM {schema}.subscriptions s, {schema}.lease_slot q WHERE s.id = sub_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- As for claim, see there, no time lies behind what was swept: a delay that begins before that would be over at once. As
    -- there, too, the newest cursor is in the current slot most often.
    SELECT c.swept_to INTO swept_to FROM {schema}.cursors c WHERE c.sub = sub.num AND c.slot = sub.slot ORDER BY c.gen DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT c.swept_to INTO swept_to FROM {schema}.newest_cursor(sub.num) c;
    END IF;
    now_at := greatest(now_at, swept_to);
    new_state := CASE WHEN act = 'extend' THEN 'leased'
                      WHEN act = 'bury' OR act = 'retry' AND sub.max_delivery_attempts <= 1 THEN 'dead'
                      ELSE 'available' END;
    new_next_at := now_at + make_interval(
        secs => CASE act WHEN 'retry' THEN coalesce(seconds, sub.backoff_min_seconds) WHEN 'bury' THEN 0 ELSE coalesce(seconds, 0) END);
    new_dead_at := CASE WHEN new_state = 'dead' THEN now_at END;

    keys := {schema}.find_leases(sub.num, sub.slot, xids, los, his);
    IF keys.slots IS NOT NULL THEN
        -- A position that was never given out must not take another message out of its lease. If leases are of more than one
        -- transaction, the log has to say whose a seq is.
        IF keys.one_xid THEN
            wanted := (SELECT range_agg(int8range(r.lo, r.hi)) FROM unnest(xids, los, his, attempts) r(xid, lo, hi, attempt)
                       WHERE r.xid = xids[1] AND r.lo < r.hi AND coalesce(r.attempt, 0) IN (0, 1));
        ELSE
            wanted := (
                SELECT range_agg(int8range(greatest(r.lo, m.base), least(r.hi, m.base + m.n)))
                FROM unnest(xids, los, his, attempts) r(xid, lo, hi, attempt)
                CROSS JOIN LATERAL (
                    SELECT m.base, m.n FROM {schema}.messages m
                    WHERE m.topic_num = sub.topic_num AND m.xid = r.xid AND m.base >= r.lo & ~65535::bigint AND m.base < r.hi
                    ORDER BY m.xid, m.base
                ) m
                WHERE r.lo < r.hi AND coalesce(r.attempt, 0) IN (0, 1) AND r.lo < m.base + m.n);
        END IF;
    END IF;
    IF wanted IS NOT NULL THEN
        FOR i IN 1..coalesce(cardinality(keys.slots), 0) LOOP
            old := keys.remainings[i];
            LOOP
                taken := old * wanted;
                EXIT WHEN isempty(taken);
                UPDATE {schema}.leases l SET remaining = old - taken
                WHERE l.sub = sub.num AND l.slot = keys.slots[i] AND l.kind = keys.kinds[i]
                  AND l.first_xid = keys.first_xids[i] AND l.first_seq = keys.first_seqs[i]
                  AND l.remaining = old AND l.deadline > now_at  -- protection: not after the deadline
                RETURNING l.consumer INTO who;
                IF FOUND THEN
                    IF who <> last_who THEN
                        n := n + {schema}.to_deliveries(sub.num, sub.topic_num, xids, los, xids, his, pending,
                            new_state, new_attempts, new_next_at, new_dead_at, last_who, error);
                        pending := '{}';
                    END IF;
                    last_who := who;
                    pending := pending + taken;
                    moved := moved + taken;
                    EXIT;
                END IF;
                -- Somebody else has changed this lease meanwhile, or it has run out.
                SELECT l.remaining INTO old FROM {schema}.leases l
                WHERE l.sub = sub.num AND l.slot = keys.slots[i] AND l.kind = keys.kinds[i]
                  AND l.first_xid = keys.first_xids[i] AND l.first_seq = keys.first_seqs[i] AND l.deadline > now_at;
                EXIT WHEN NOT FOUND;
            END LOOP;
        END LOOP;
        IF NOT isempty(pending) THEN
            n := n + {schema}.to_deliveries(sub.num, sub.topic_num, xids, los, xids, his, pending,
                new_state, new_attempts, new_next_at, new_dead_at, last_who, error);
        END IF;
    END IF;
    IF n = (SELECT sum(r.hi - r.lo) FROM unnest(los, his) r(lo, hi)) THEN
        RETURN n;
    END IF;

    SELECT array_agg(d.tid) AS tids INTO due
    FROM unnest(xids, los, his, attempts) r(xid, lo, hi, attempt)
    CROSS JOIN LATERAL (
        SELECT d.ctid AS tid
        FROM {schema}.deliveries d
        WHERE d.sub = sub.num AND d.xid = r.xid AND d.seq >= r.lo AND d.seq < r.hi AND NOT d.seq <@ moved
          AND d.state::text = 'leased' AND d.next_at > now_at
          AND (coalesce(r.attempt, 0) = 0 OR d.attempts = r.attempt)  -- protection: the current attempt
        ORDER BY d.sub, d.xid, d.seq
        FOR UPDATE
    ) d;
    IF due.tids IS NOT NULL THEN
        UPDATE {schema}.deliveries d
        SET state = CASE WHEN act = 'extend' THEN 'leased'
                         WHEN act = 'bury' OR act = 'retry' AND d.attempts >= sub.max_delivery_attempts THEN 'dead'
                         ELSE 'available' END::{schema}.delivery_state,
            attempts = CASE act WHEN 'give back' THEN d.attempts - 1 ELSE d.attempts END,
            next_at = now_at + CASE act
                WHEN 'bury' THEN interval '0'
                WHEN 'retry' THEN coalesce(make_interval(secs => seconds),
                    {schema}.backoff(d.attempts, sub.backoff_min_seconds, sub.backoff_max_seconds))
                ELSE make_interval(secs => coalesce(seconds, 0)) END,
            dead_at = CASE WHEN act = 'bury' OR act = 'retry' AND d.attempts >= sub.max_delivery_attempts THEN now_at END,
            last_error = coalesce(error, d.last_error)
        WHERE d.ctid = ANY (due.tids);
        GET DIAGNOSTICS updated = ROW_COUNT;
        n := n + updated;
    END IF;
    RETURN n;
END $$;
