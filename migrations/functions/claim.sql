-- claim ends what has expired (sweep_leases), then takes up to max_messages from a subscription for a consumer:
-- redeliveries that are due, then what late transactions left, then the log. While the log has enough it looks for what has
-- expired or is due every 100 ms only. It takes fewer when they have more than 64 MiB of payloads and attributes, but for the last
-- record batch; so consumers need no more memory than that. It leaves what it took in the session setting fastpubsub.claim, for claimed() to read
-- after this transaction has committed. It returns positions to nobody and payloads never: whoever does not read an answer
-- would hold the subscription's lock for as long as he likes.
--
-- It returns 'ok'; 'all' when it took something and left nothing that had been committed and was due; 'more' when a filter
-- let through none of what it examined, or it found nothing in as many late transactions as it looks at, and there may be
-- more; 'busy' when it did not get the subscription's lock within a second; 'no_subscription'. A claim that found nothing
-- writes nothing, but for how far it has looked, where that was slow.
--
-- ack_deadline_seconds NULL is the subscription's. `single` gives each message a lease row of its own, for handlers
-- that ack inside their own transactions. log_only leaves out what has expired or is due.
--
-- It runs in a transaction of its own, READ COMMITTED, because it reads the cursor after it has the lock, and because
-- a transaction's own id is in none of its snapshots' lists: a publish in it, earlier or later, could hide a neighbour's
-- or be hidden. If the transaction is rolled back, claimed() has what an earlier claim of the session took.
-- Commit is asynchronous: a claim lost in a crash means redelivery, and any later durable commit flushes it first.
CREATE OR REPLACE FUNCTION {schema}.claim(
    sub_id text, consumer text, max_messages int, ack_deadline_seconds int, single boolean, log_only boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_incremental_sort = off
SET enable_sort = off
SET jit = off
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '1s'
AS $$
DECLARE
    max_examined CONSTANT int := 10000;  -- messages, for a filter
    look_pause   CONSTANT interval := '100 ms';  -- between looks for what has expired or is due, while the log has enough
    slow         CONSTANT interval := '2 ms';  -- a look, which costs 0.1 ms otherwise
    class        CONSTANT int := {schema}.lock_class();
    sub_num        int;
    current_slot   smallint;
    state          record;
    now_at         timestamptz;
    due_since      timestamptz;
    deadline       timestamptz;
    looking        boolean;
    scanned        boolean := false;
    look_began     timestamptz;
    look           record;
    swept          record;
    due            record;
    due_xids       bigint[];
    due_seqs       bigint[];
    due_attempts   int[];
    own_xid        bigint;
    new_swept_to   timestamptz;
    new_due_to     timestamptz;
    new_full_at    timestamptz;
    new_acked      bigint;
    wanted         int := max_messages;
    room           bigint := 64 << 20;  -- bytes
    taken          record;
    matched        record;
    late_xids      bigint[];
    late_seqs      bigint[];
    slots          smallint[] := '{}';
    xids           bigint[] := '{}';
    los            bigint[] := '{}';
    his            bigint[] := '{}';
    changed        boolean := false;
    more           boolean := false;
    late_whole     boolean := true;   -- nothing is left of late transactions, nor
    whole          boolean := false;  -- in the log
    late_stretches int := 0;
    outcome        text := 'ok';
    done           text;
    new_xid        bigint;
    new_seq        bigint;
BEGIN
    IF max_messages IS NULL OR max_messages < 0 OR single IS NULL THEN
        RAISE EXCEPTION 'max_messages must be at least 0, and single true or false' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF ack_deadline_seconds NOT BETWEEN 1 AND 43200 THEN
        RAISE EXCEPTION 'ack_deadline_seconds must be 1 to 43200' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF current_setting('fastpubsub.home', true) IS DISTINCT FROM '{schema}.messages'::regclass::oid::text THEN
        PERFORM {schema}.check_origin();
    END IF;
    done := set_config('fastpubsub.claim', '', false);  -- an assignment costs less than PERFORM
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN  -- protection: own transaction
        RAISE EXCEPTION 'claim needs a transaction of its own' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'claim needs isolation level read committed' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    done := set_config('synchronous_commit', 'off', true);

    SELECT s.num INTO sub_num FROM {schema}.subscriptions s WHERE s.id = sub_id;
    IF NOT FOUND THEN
        RETURN 'no_subscription';
    END IF;
    IF NOT pg_try_advisory_xact_lock(class, sub_num) THEN
        BEGIN
            PERFORM pg_advisory_xact_lock(class, sub_num);
        EXCEPTION WHEN lock_not_available THEN
            RETURN 'busy';
        END;
    END IF;
    -- The slot is read under the lock, so cursor rows fill the slots in order, and the newest of the current slot is the
    -- newest of all. Where it has none yet, the others are looked at too; opening them all takes longer than this.
    current_slot := (SELECT last_value FROM {schema}.lease_slot) & 3;
    now_at := {schema}.clock();
    SELECT s.topic_num, s.filter_path, s.ack_deadline_seconds, s.max_delivery_attempts, c.*
    INTO state
    FROM {schema}.subscriptions s
    CROSS JOIN LATERAL (
        SELECT c.gen, c.xid, c.seq, c.late_xids, c.late_seqs, c.swept_to, c.due_to, c.full_at, c.acked
        FROM {schema}.cursors c WHERE c.sub = s.num AND c.slot = current_slot
        ORDER BY c.gen DESC LIMIT 1
    ) c
    WHERE s.num = sub_num;
    IF NOT FOUND THEN
        SELECT s.topic_num, s.filter_path, s.ack_deadline_seconds, s.max_delivery_attempts,
               c.gen, c.xid, c.seq, c.late_xids, c.late_seqs, c.swept_to, c.due_to, c.full_at, c.acked
        INTO state
        FROM {schema}.subscriptions s, {schema}.newest_cursor(sub_num) c
        WHERE s.num = sub_num;
    END IF;
    IF NOT FOUND THEN  -- deleted while we waited
        RETURN 'no_subscription';
    END IF;
    looking := NOT log_only AND (max_messages = 0 OR state.due_to <= now_at - look_pause OR state.due_to > now_at);
    due_since := {schema}.due_from(state.due_to, state.full_at, now_at);
    new_full_at := CASE WHEN due_since = '-infinity' THEN now_at ELSE state.full_at END;
    now_at := greatest(now_at, state.swept_to);  -- a clock may step back, but no deadline behind what was swept
    deadline := now_at + make_interval(secs => coalesce(claim.ack_deadline_seconds, state.ack_deadline_seconds));
    new_swept_to := state.swept_to;
    new_due_to := state.due_to;
    new_acked := state.acked;
    late_xids := state.late_xids;
    late_seqs := state.late_seqs;
    new_xid := state.xid;
    new_seq := state.seq;

    LOOP
        IF looking THEN
            look_began := clock_timestamp();
            SELECT EXISTS (SELECT FROM {schema}.leases l
                           WHERE l.sub = sub_num AND l.deadline > '-infinity' AND l.deadline > state.swept_to AND l.deadline <= now_at)
                       OR EXISTS (SELECT FROM {schema}.held_leases h WHERE h.sub = sub_num)
                       OR EXISTS (SELECT FROM {schema}.deliveries d
                                  WHERE d.sub = sub_num AND d.next_at >= due_since AND d.next_at <= now_at AND d.state = 'leased') AS expired,
                   EXISTS (SELECT FROM {schema}.deliveries d
                           WHERE d.sub = sub_num AND d.next_at >= due_since AND d.next_at <= now_at
                             AND d.state IN ('available', 'expired')) AS due
            INTO look;
            new_swept_to := now_at;
            new_due_to := now_at;
            IF look.expired THEN
                swept := {schema}.sweep_leases(sub_num, state.topic_num, state.max_delivery_attempts, state.swept_to, due_since, now_at);
                changed := changed OR swept.looked;
                new_swept_to := swept.swept_to;
                new_due_to := swept.due_to;
                new_acked := new_acked + swept.acked;
                look.due := look.due OR swept.expired > 0;
            END IF;
            IF look.due AND wanted > 0 THEN
                due := {schema}.claim_due(sub_num, consumer, deadline, wanted, room, due_since, now_at);
                changed := changed OR due.xids IS NOT NULL;
                new_due_to := least(new_due_to, due.due_to);
                due_xids := due.xids;
                due_seqs := due.seqs;
                due_attempts := due.attempts;
                wanted := wanted - coalesce(cardinality(due_xids), 0);
                room := room - coalesce(due.bytes, 0);
            ELSIF look.due THEN
                new_due_to := least(new_due_to, state.due_to);
                new_full_at := state.full_at;
            END IF;
            IF least(new_swept_to, new_due_to) < now_at THEN  -- there is more: the next call looks again
                new_due_to := least(new_due_to, now_at - look_pause);
            END IF;
            -- What vacuum has not removed yet makes the search slow, and then this is written down for the next.
            IF NOT changed AND clock_timestamp() - look_began > slow
               AND EXISTS (SELECT FROM {schema}.deliveries d WHERE d.sub = sub_num LIMIT 1) THEN
                changed := true;
            END IF;
        END IF;
        EXIT WHEN scanned;
        IF changed THEN
            own_xid := pg_current_xact_id_if_assigned()::text::bigint;
        END IF;

        IF wanted > 0 AND room > 0 AND cardinality(late_xids) > 0 THEN
            taken := {schema}.scan_late(state.topic_num, late_xids, late_seqs,
                                        CASE WHEN state.filter_path IS NULL THEN wanted ELSE max_examined END, room);
            room := room - coalesce(taken.bytes, 0);
            late_whole := cardinality(taken.finished) < 64;
            IF taken.xids IS NOT NULL AND state.filter_path IS NOT NULL THEN
                matched := {schema}.filter_ranges(state.topic_num, state.filter_path, wanted,
                                                  taken.slots, taken.xids, taken.los, taken.his);
                taken.slots := matched.slots;
                taken.xids := matched.xids;
                taken.los := matched.los;
                taken.his := matched.his;
                more := taken.end_xid IS NOT NULL OR matched.end_xid IS NOT NULL;
                taken.end_xid := coalesce(matched.end_xid, taken.end_xid);
                taken.end_seq := coalesce(matched.end_seq, taken.end_seq);
            END IF;
            IF cardinality(taken.finished) > 0 THEN
                -- What was finished and examined whole leaves the list. The transaction at which the scan ended stays; if
                -- it has nothing left, the next call finds that out.
                changed := true;
                SELECT coalesce(array_agg(l.xid ORDER BY l.xid), '{}'),
                       coalesce(array_agg(CASE WHEN l.xid = taken.end_xid THEN taken.end_seq ELSE l.seq END ORDER BY l.xid), '{}')
                INTO late_xids, late_seqs
                FROM unnest(late_xids, late_seqs) l(xid, seq)
                WHERE l.xid <> ALL (taken.finished) OR l.xid >= taken.end_xid;
            END IF;
            IF cardinality(taken.xids) > 0 THEN
                late_stretches := cardinality(taken.xids);
                slots := taken.slots;
                xids := taken.xids;
                los := taken.los;
                his := taken.his;
                wanted := wanted - (SELECT sum(r.hi - r.lo) FROM unnest(los, his) r(lo, hi));
            END IF;
        END IF;

        IF wanted > 0 AND room > 0 AND NOT more THEN
            IF state.filter_path IS NULL THEN
                taken := {schema}.scan_main(state.topic_num, state.xid, state.seq, wanted, max_messages, room);
            ELSE
                taken := {schema}.scan_main(state.topic_num, state.xid, state.seq, max_examined, 0, room);
            END IF;
            whole := coalesce(taken.whole, false);
            room := room - coalesce(taken.bytes, 0);
            IF taken.xids IS NOT NULL THEN
                changed := true;
                IF state.filter_path IS NOT NULL THEN
                    more := true;
                    matched := {schema}.filter_ranges(state.topic_num, state.filter_path, wanted,
                                                      taken.slots, taken.xids, taken.los, taken.his);
                    whole := whole AND matched.end_xid IS NULL;
                    taken.slots := matched.slots;
                    taken.xids := matched.xids;
                    taken.los := matched.los;
                    taken.his := matched.his;
                    taken.end_xid := coalesce(matched.end_xid, taken.end_xid);
                    taken.end_seq := coalesce(matched.end_seq, taken.end_seq);
                END IF;
                new_xid := taken.end_xid;
                new_seq := taken.end_seq;
                -- A transaction that has written has an id, which none of its own snapshots lists. Nothing should be published in
                -- it, but what is must not be lost.
                IF own_xid > state.xid AND own_xid < new_xid THEN  -- protection: late when it is our own
                    taken.open_xids := taken.open_xids || own_xid;
                END IF;
                IF new_xid > ANY (taken.open_xids) THEN  -- protection: late when passed
                    late_xids := late_xids || ARRAY(SELECT x FROM unnest(taken.open_xids) x WHERE x < new_xid ORDER BY x);
                    late_seqs := late_seqs || array_fill(-1::bigint, ARRAY[cardinality(late_xids) - cardinality(late_seqs)]);
                END IF;
                IF cardinality(taken.xids) > 0 THEN
                    done := {schema}.grant_leases(sub_num, 0::smallint, current_slot, consumer, deadline, single,
                                                  taken.xids, taken.los, taken.his);
                    slots := slots || taken.slots;
                    xids := xids || taken.xids;
                    los := los || taken.los;
                    his := his || taken.his;
                    wanted := wanted - CASE WHEN cardinality(taken.xids) = 1 THEN taken.his[1] - taken.los[1]
                                            ELSE (SELECT sum(r.hi - r.lo) FROM unnest(taken.los, taken.his) r(lo, hi)) END;
                END IF;
            END IF;
        END IF;

        EXIT WHEN looking OR wanted = 0 OR room <= 0 OR log_only;
        scanned := true;
        looking := true;
    END LOOP;

    IF late_stretches > 0 THEN
        done := {schema}.grant_leases(sub_num, 1::smallint, current_slot, consumer, deadline, single,
                                      xids[:late_stretches], los[:late_stretches], his[:late_stretches]);
    END IF;
    IF changed THEN
        INSERT INTO {schema}.cursors (gen, xid, seq, sub, slot, late_xids, late_seqs, swept_to, due_to, full_at, acked)
        VALUES (state.gen + 1, new_xid, new_seq, sub_num, current_slot, late_xids, late_seqs,
                new_swept_to, new_due_to, CASE WHEN looking THEN new_full_at ELSE state.full_at END, new_acked);
    END IF;
    IF wanted > 0 AND looking AND late_whole AND whole AND least(new_swept_to, new_due_to) >= now_at THEN
        outcome := 'all';
    END IF;
    IF due_xids IS NOT NULL THEN
        done := set_config('fastpubsub.claim', concat_ws('|', state.topic_num, slots::text, xids::text, los::text, his::text,
                                                         CASE WHEN state.filter_path IS NULL THEN 'all' ELSE '' END,
                                                         sub_num, due_xids::text, due_seqs::text, due_attempts::text), false);
        RETURN outcome;
    END IF;
    IF cardinality(xids) > 0 THEN
        done := set_config('fastpubsub.claim', concat_ws('|', state.topic_num, slots::text, xids::text, los::text, his::text,
                                                         CASE WHEN state.filter_path IS NULL THEN 'all' ELSE '' END, sub_num), false);
        RETURN outcome;
    END IF;
    RETURN CASE WHEN more OR NOT late_whole THEN 'more' ELSE 'ok' END;
END $$;
