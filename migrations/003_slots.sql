-- What maintenance knows about the slots of the two rings; see rotate and truncate_slot.

-- since: when the slot became the current one. until: when it was left. unneeded_at: when it was found that nothing in it is
-- needed any more, by snapshot seen. waits_for: the virtual transactions that were running at that time, whose snapshots
-- may still need it, or, before unneeded_at is set, those that may still write into it.
CREATE TABLE {{.schema}}.slots (
    ring        text NOT NULL CONSTRAINT slots_ring_check CHECK (ring IN ('messages', 'leases')),
    slot        smallint NOT NULL,
    since       timestamptz,
    until       timestamptz,
    unneeded_at timestamptz,
    seen        pg_snapshot,
    waits_for   text[] NOT NULL DEFAULT '{}',
    CONSTRAINT slots_pkey PRIMARY KEY (ring, slot)
);
INSERT INTO {{.schema}}.slots (ring, slot) SELECT ring, slot FROM unnest(ARRAY['messages', 'leases']) ring, generate_series(0, 3) slot;
UPDATE {{.schema}}.slots SET since = clock_timestamp()
WHERE (ring, slot) IN (('messages', (SELECT last_value & 3 FROM {{.schema}}.message_slot)),
                       ('leases', (SELECT last_value & 3 FROM {{.schema}}.lease_slot)));

---- create above / drop below ----

DROP TABLE {{.schema}}.slots;
