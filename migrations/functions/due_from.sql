-- due_from is where the search for deliveries that are due begins. They are found by an index on the time, in which rows
-- that were handed out or acked stay until a vacuum may remove them, and that is long while an old snapshot pins the
-- horizon. So each search begins a second before where the last one ended (due_to), also in a backlog that was due long ago.
-- What is missed by that, because it became due more than a second before its transaction committed, or because its row was
-- locked, is found by the first search in each stretch of ten seconds, which begins at the beginning; full_at is when the last
-- one did. So does one by a clock that has stepped back.
CREATE OR REPLACE FUNCTION {schema}.due_from(due_to timestamptz, full_at timestamptz, now_at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN greatest(due_to, full_at) <= now_at AND date_bin('10 seconds', now_at, '2000-01-01 00:00Z') = date_bin('10 seconds', full_at, '2000-01-01 00:00Z')
            THEN due_to - interval '1 second' ELSE '-infinity' END;
