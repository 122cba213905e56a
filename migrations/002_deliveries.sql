-- What leaves the happy path: a row for each message that failed, expired, was extended or given back.

-- available: waits for next_at. expired: the same, but its last consumer may still ack it. leased: with a consumer until
-- next_at. acked: done, and kept until it is counted in the subscription's cursor. dead: the dead letter queue.
CREATE TYPE {{.schema}}.delivery_state AS ENUM ('available', 'expired', 'leased', 'acked', 'dead');

-- A message is either beyond a subscription's cursor, or in one lease, or here; what is here never goes back. The payload
-- is a copy, because slots of the log are truncated without a look at this table. Unlike those it is a table that is
-- updated and vacuumed. The xids and seqs of a message are those of the log.
CREATE TABLE {{.schema}}.deliveries (
    xid        bigint NOT NULL,
    seq        bigint NOT NULL,
    next_at    timestamptz NOT NULL,
    created_at timestamptz NOT NULL,  -- of the message
    dead_at    timestamptz,
    sub        int NOT NULL,
    attempts   int NOT NULL,          -- deliveries so far, that of a lease included
    state      {{.schema}}.delivery_state NOT NULL,
    consumer   text,                  -- who has it, or had it last
    payload    text NOT NULL,
    attributes jsonb,
    last_error text,
    CONSTRAINT deliveries_pkey PRIMARY KEY (sub, xid, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- What waits, in the order in which it becomes due, and leases, in the order in which they run out. Statements that look
-- for a row by its key compare state as text, so that none of these partial indexes can seem to fit.
CREATE INDEX deliveries_due_idx ON {{.schema}}.deliveries (sub, next_at) WHERE state IN ('available', 'expired');
CREATE INDEX deliveries_leased_idx ON {{.schema}}.deliveries (sub, next_at) WHERE state = 'leased';

-- The dead letter queue, oldest first. The position makes the order of a list total.
CREATE INDEX deliveries_dead_idx ON {{.schema}}.deliveries (sub, dead_at, xid, seq) WHERE state = 'dead';

-- What maintenance counts and removes.
CREATE INDEX deliveries_acked_idx ON {{.schema}}.deliveries (sub) WHERE state = 'acked';

-- Leases that had expired while somebody else held their row, who was not waited for. They are tried again.
CREATE TABLE {{.schema}}.held_leases (
    first_xid bigint NOT NULL,
    first_seq bigint NOT NULL,
    sub       int NOT NULL,
    kind      smallint NOT NULL,
    slot      smallint NOT NULL,
    CONSTRAINT held_leases_pkey PRIMARY KEY (sub, kind, first_xid, first_seq, slot)
);

-- swept_to: every lease whose deadline is not behind it has been looked at, and is empty or held. due_to: what was due
-- then has been handed out; see due_from. acked: what has been acked of all that was looked at.
ALTER TABLE {{.schema}}.cursors
    ADD COLUMN swept_to timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN due_to   timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN acked    bigint NOT NULL DEFAULT 0;

-- What has expired, in the order in which it did. A statement that looks for a lease by its key must not choose this index,
-- which in a small table looks as good; so only one that says the same of deadline can use it.
DROP INDEX {{.schema}}.leases_deadline_idx;
CREATE INDEX leases_deadline_idx ON {{.schema}}.leases (sub, deadline) WHERE deadline > '-infinity';

-- It returns another column now. There was no release whose binaries would miss it.
DROP FUNCTION IF EXISTS {{.schema}}.claimed();

---- create above / drop below ----

DROP TABLE {{.schema}}.deliveries, {{.schema}}.held_leases;
DROP TYPE {{.schema}}.delivery_state;
DROP INDEX {{.schema}}.leases_deadline_idx;
CREATE INDEX leases_deadline_idx ON {{.schema}}.leases (sub, deadline);
ALTER TABLE {{.schema}}.cursors DROP COLUMN swept_to, DROP COLUMN due_to, DROP COLUMN acked;
