-- backoff is how long a message waits after its attempts-th failure: the minimum after the first, then twice as long after
-- each, up to the maximum.
CREATE OR REPLACE FUNCTION {schema}.backoff(attempts int, min_seconds int, max_seconds int) RETURNS interval
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN make_interval(secs => least(max_seconds::float8, min_seconds * 2::float8 ^ least(attempts - 1, 62)));
