-- slot_needed says whether a subscription needs a slot of a ring.
CREATE OR REPLACE FUNCTION {schema}.slot_needed(ring text, slot smallint) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF ring = 'messages' THEN
        RETURN EXISTS (SELECT FROM {schema}.message_slot_needs(slot));
    END IF;
    RETURN EXISTS (SELECT FROM {schema}.lease_slot_needs(slot));
END $$;
