-- clock is the time by which the engine judges: the database's, not that of the transaction's start, which may lie far
-- back. It has one place so that tests can move it. The planner puts the body in its place, so a call costs nothing.
CREATE OR REPLACE FUNCTION {schema}.clock() RETURNS timestamptz
LANGUAGE sql VOLATILE
RETURN clock_timestamp();
