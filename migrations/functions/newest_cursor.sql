-- newest_cursor is the state of a subscription: one row, or none. It looks into all slots; claim has a shorter way for when
-- there is a row in the current one. The planner puts the body in its place.
CREATE OR REPLACE FUNCTION {schema}.newest_cursor(sub_num int) RETURNS SETOF {schema}.cursors
LANGUAGE sql STABLE
AS $$
    SELECT c.* FROM {schema}.cursors c WHERE c.sub = sub_num ORDER BY c.gen DESC LIMIT 1
$$;
