-- slot_bytes is the size of a ring's slot in the file system, with TOAST, without indexes: 0 after it was truncated, and not
-- where transactions that were rolled back have left something.
CREATE OR REPLACE FUNCTION {schema}.slot_bytes(ring text, slot smallint) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT sum(pg_relation_size(c.oid) + CASE WHEN c.reltoastrelid = 0 THEN 0 ELSE pg_relation_size(c.reltoastrelid) END)::bigint
    FROM unnest(CASE ring WHEN 'messages' THEN ARRAY['messages'] ELSE ARRAY['leases', 'cursors'] END) part
    JOIN pg_class c ON c.oid = ('{schema}.' || part || '_' || slot)::regclass
$$;
