-- multirange_size is how many numbers a multirange has.
CREATE OR REPLACE FUNCTION {schema}.multirange_size(m int8multirange) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$ SELECT coalesce(sum(upper(r) - lower(r)), 0)::bigint FROM unnest(m) r $$;
