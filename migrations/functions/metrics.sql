-- metrics counts the messages of a subscription as one snapshot sees them. It takes no lock and writes nothing.
--
-- available waits to be delivered, delayed is the part of it that waits for its backoff, delivered is with consumers (or has
-- expired and nobody has looked since), acked is the total ever, dead waits in the dead letter queue. oldest_at is when the
-- oldest message was published that is neither acked nor dead; for messages in the log, it is that of their record batch.
--
-- A filter has to look at what waits in the log. It does so for some 250 ms; then the rest is estimated from that share, and
-- estimated is true. All columns are NULL when there is no such subscription.
CREATE OR REPLACE FUNCTION {schema}.metrics(
    sub_id text, OUT available bigint, OUT delayed bigint, OUT delivered bigint, OUT acked bigint, OUT dead bigint,
    OUT oldest_at timestamptz, OUT now_at timestamptz, OUT estimated boolean)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
AS $$
DECLARE
    rows_a_look CONSTANT int := 256;
    sub       record;
    part      record;
    late_xid  bigint := 0;  -- where the search goes on: in late transactions
    late_base bigint := 0;
    main_xid  bigint;       -- and in the log beyond the cursor
    main_base bigint;
    examined  bigint := 0;
    matched   bigint := 0;
    in_log    record;
    guarded   boolean := false;
    until     timestamptz;
BEGIN
    SELECT s.topic_num, s.filter_path, c.* INTO sub
    FROM {schema}.subscriptions s CROSS JOIN LATERAL {schema}.newest_cursor(s.num) c
    WHERE s.id = sub_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    now_at := {schema}.clock();
    estimated := false;

    SELECT count(*) AS n, count(*) FILTER (WHERE d.next_at > now_at) AS delayed, min(d.created_at) AS oldest_at INTO part
    FROM {schema}.deliveries d WHERE d.sub = sub.sub AND d.state IN ('available', 'expired');
    available := part.n;
    delayed := part.delayed;
    oldest_at := part.oldest_at;
    SELECT count(*) AS n, min(d.created_at) AS oldest_at INTO part
    FROM {schema}.deliveries d WHERE d.sub = sub.sub AND d.state = 'leased';
    delivered := part.n;
    oldest_at := least(oldest_at, part.oldest_at);
    dead := (SELECT count(*) FROM {schema}.deliveries d WHERE d.sub = sub.sub AND d.state = 'dead');
    acked := sub.acked + (SELECT count(*) FROM {schema}.deliveries d WHERE d.sub = sub.sub AND d.state = 'acked');

    SELECT sum(CASE WHEN isempty(l.remaining) THEN 0
                    ELSE (SELECT sum(upper(r) - lower(r)) FROM unnest(l.remaining) r) END) AS size,
           sum(l.acked) AS acked,
           min((SELECT m.created_at FROM {schema}.messages m
                WHERE NOT isempty(l.remaining) AND m.topic_num = sub.topic_num
                  AND (m.xid, m.base) >= (l.first_xid, l.first_seq & ~65535::bigint) AND (m.xid, m.base) <= (l.last_xid, l.last_seq)
                  AND int8range(m.base, m.base + m.n) && l.remaining
                ORDER BY m.xid, m.base LIMIT 1)) AS oldest_at
    INTO part
    FROM {schema}.open_leases(sub.sub, sub.swept_to) l;
    delivered := delivered + coalesce(part.size, 0);
    acked := acked + coalesce(part.acked, 0);
    oldest_at := least(oldest_at, part.oldest_at);

    -- What late transactions left, and the log beyond the cursor.
    main_xid := sub.xid;
    main_base := (sub.seq + 1) & ~65535::bigint;
    SELECT sum(m.base + m.n - greatest(m.base, l.seq + 1)) AS n, min(m.created_at) AS oldest_at INTO in_log
    FROM unnest(sub.late_xids, sub.late_seqs) l(xid, seq)
    CROSS JOIN LATERAL (
        SELECT m.base, m.n, m.created_at FROM {schema}.messages m
        WHERE m.topic_num = sub.topic_num AND m.xid = l.xid AND m.base >= (l.seq + 1) & ~65535::bigint
          AND m.base + m.n > l.seq + 1
        ORDER BY m.xid, m.base
    ) m;
    SELECT coalesce(in_log.n, 0) + coalesce(sum(m.base + m.n - greatest(m.base, sub.seq + 1)), 0) AS n,
           least(in_log.oldest_at, min(m.created_at)) AS oldest_at
    INTO in_log
    FROM {schema}.messages m
    WHERE m.topic_num = sub.topic_num AND m.xid = main_xid AND m.base >= main_base;
    SELECT in_log.n + coalesce(sum(m.n), 0) AS n, least(in_log.oldest_at, min(m.created_at)) AS oldest_at INTO in_log
    FROM {schema}.messages m
    WHERE m.topic_num = sub.topic_num AND m.xid > main_xid;
    IF sub.filter_path IS NULL THEN
        available := available + in_log.n;
        oldest_at := least(oldest_at, in_log.oldest_at);
        RETURN;
    END IF;
    IF in_log.n = 0 THEN
        RETURN;
    END IF;

    until := clock_timestamp() + interval '250 ms';
    LOOP
        BEGIN
            SELECT count(*) AS rows, coalesce(sum(m.hi - m.lo), 0) AS examined, coalesce(sum(f.n), 0) AS matched,
                   min(m.created_at) FILTER (WHERE f.n > 0) AS oldest_at,
                   (array_agg(m.xid ORDER BY m.xid DESC, m.base DESC))[1] AS xid,
                   (array_agg(m.base ORDER BY m.xid DESC, m.base DESC))[1] AS base
            INTO part
            FROM (
                (SELECT m.xid, m.base, m.payloads, m.created_at, m.base + m.n AS hi, greatest(m.base, l.seq + 1) AS lo
                 FROM unnest(sub.late_xids, sub.late_seqs) l(xid, seq)
                 CROSS JOIN LATERAL (
                     SELECT m.xid, m.base, m.n, m.payloads, m.created_at FROM {schema}.messages m
                     WHERE m.topic_num = sub.topic_num AND m.xid = l.xid AND m.base + m.n > l.seq + 1
                       AND m.base >= CASE WHEN l.xid = late_xid THEN late_base ELSE (l.seq + 1) & ~65535::bigint END
                     ORDER BY m.xid, m.base
                     LIMIT rows_a_look
                 ) m
                 WHERE l.xid >= late_xid
                 ORDER BY m.xid, m.base LIMIT rows_a_look)
                UNION ALL
                (SELECT m.xid, m.base, m.payloads, m.created_at, m.base + m.n,
                        CASE WHEN m.xid = sub.xid THEN greatest(m.base, sub.seq + 1) ELSE m.base END
                 FROM {schema}.messages m
                 WHERE m.topic_num = sub.topic_num AND (m.xid, m.base) >= (main_xid, main_base)
                 ORDER BY m.xid, m.base LIMIT rows_a_look)
                ORDER BY xid, base
                LIMIT rows_a_look
            ) m
            CROSS JOIN LATERAL (
                SELECT count(*) AS n FROM unnest(m.payloads) WITH ORDINALITY p(payload, i)
                WHERE m.base + p.i - 1 >= m.lo
                  AND CASE WHEN guarded THEN {schema}.matches_guarded(p.payload, sub.filter_path, m.xid, m.base + p.i - 1)
                           ELSE p.payload::jsonb @@ sub.filter_path END
            ) f;
        EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
            IF guarded THEN
                RAISE;
            END IF;
            guarded := true;
            CONTINUE;
        END;
        examined := examined + part.examined;
        matched := matched + part.matched;
        oldest_at := least(oldest_at, part.oldest_at);
        EXIT WHEN part.rows < rows_a_look;
        late_xid := part.xid;  -- those are behind the cursor, and so come first
        late_base := part.base + 1;
        IF (part.xid, part.base) >= (main_xid, main_base) THEN
            main_xid := part.xid;
            main_base := part.base + 1;
        END IF;
        IF clock_timestamp() > until THEN
            estimated := true;
            matched := round(matched::float8 * in_log.n / examined);
            EXIT;
        END IF;
    END LOOP;
    available := available + matched;
END $$;
