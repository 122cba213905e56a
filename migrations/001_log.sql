-- Topics, subscriptions, and the log with its cursors and leases.
--
-- {{.schema}} is the quoted name of the schema. Every constraint has a name, because the code switches on it. The
-- limits stand here as well as in Go, so that a client in another language meets them too.

-- num is what the large tables refer to: four bytes instead of a name, and a topic that is deleted and created again
-- under the same name is another one. Ids compare bytewise, so that lists have one order in every database.
CREATE TABLE {{.schema}}.topics (
    num        int GENERATED ALWAYS AS IDENTITY CONSTRAINT topics_pkey PRIMARY KEY,
    id         text COLLATE "C" NOT NULL CONSTRAINT topics_id_key UNIQUE
               CONSTRAINT topics_id_check CHECK (id ~ '^[a-zA-Z0-9._-]{1,128}$' AND id NOT IN ('.', '..')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- filter is the JSON text as the user gave it (json keeps it, jsonb would rewrite numbers); filter_path is the same
-- compiled, NULL when every message matches.
CREATE TABLE {{.schema}}.subscriptions (
    num                   int GENERATED ALWAYS AS IDENTITY CONSTRAINT subscriptions_pkey PRIMARY KEY,
    id                    text COLLATE "C" NOT NULL CONSTRAINT subscriptions_id_key UNIQUE
                          CONSTRAINT subscriptions_id_check CHECK (id ~ '^[a-zA-Z0-9._-]{1,128}$' AND id NOT IN ('.', '..')),
    topic_num             int NOT NULL CONSTRAINT subscriptions_topic_num_fkey REFERENCES {{.schema}}.topics ON DELETE CASCADE,
    filter                json,
    filter_path           jsonpath,
    max_delivery_attempts int NOT NULL CONSTRAINT subscriptions_max_delivery_attempts_check CHECK (max_delivery_attempts >= 1),
    backoff_min_seconds   int NOT NULL CONSTRAINT subscriptions_backoff_min_seconds_check CHECK (backoff_min_seconds >= 1),
    backoff_max_seconds   int NOT NULL CONSTRAINT subscriptions_backoff_max_seconds_check CHECK (backoff_max_seconds >= backoff_min_seconds),
    ack_deadline_seconds  int NOT NULL CONSTRAINT subscriptions_ack_deadline_seconds_check CHECK (ack_deadline_seconds BETWEEN 1 AND 43200),
    created_at            timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- For the cascade of a deleted topic.
CREATE INDEX subscriptions_topic_num_idx ON {{.schema}}.subscriptions (topic_num);

-- The log: one row for each record batch, written once and never changed. A message's position is (xid, seq), where
-- xid is the publishing transaction and seq = base + its index in payloads. Fixed-width columns come first, eight
-- bytes before four, so that rows have little padding. The slots are a ring: space is to come back by truncating the
-- oldest. Only
-- engine functions write here, to leases and to cursors, and these tables have no CHECKs: the server parses those anew
-- for every statement, which was 6 % of the time of a publish.
CREATE TABLE {{.schema}}.messages (
    xid        bigint NOT NULL,
    base       bigint NOT NULL,
    created_at timestamptz NOT NULL,
    topic_num  int NOT NULL,
    n          int NOT NULL,
    slot       smallint NOT NULL,
    payloads   text[] NOT NULL,
    attributes jsonb[]
) PARTITION BY LIST (slot);

-- The only way into the log: a topic from a position on, or all of one transaction. Nothing else is in the index: slots
-- are never vacuumed, so a scan looks at the rows in any case.
CREATE INDEX messages_position_idx ON {{.schema}}.messages (topic_num, xid, base);

-- base is drawn here and shifted left by 16 bits, which leaves the low ones to the index in the batch.
CREATE SEQUENCE {{.schema}}.message_base MAXVALUE 70368744177663;

-- The current slot is last_value modulo the ring's size. A sequence is not subject to MVCC: a publisher with an old
-- snapshot writes to the current slot too.
CREATE SEQUENCE {{.schema}}.message_slot MINVALUE 0 START 0;

-- The state of each subscription, append-only: whatever changes it adds a row with the next gen under the
-- subscription's lock, and the newest row counts. (xid, seq) is the last position examined; late_xids are the
-- transactions that were in progress when the cursor passed them, late_seqs how far each has been examined.
CREATE TABLE {{.schema}}.cursors (
    gen       bigint NOT NULL,
    xid       bigint NOT NULL,
    seq       bigint NOT NULL,
    sub       int NOT NULL,
    slot      smallint NOT NULL,
    late_xids bigint[] NOT NULL,
    late_seqs bigint[] NOT NULL,
    CONSTRAINT cursors_pkey PRIMARY KEY (sub, gen, slot)
) PARTITION BY LIST (slot);

-- One row for each stretch of messages that was handed out, from its first position to its last, both included. kind 0
-- is a stretch of the main scan: those of a subscription are disjoint. kind 1 is a stretch of one late transaction.
-- remaining holds the seqs that nobody has acked; seqs are unique in the whole log. An ack changes remaining and acked
-- only, neither of them indexed, and finds free space in the page: fillfactor keeps the update HOT.
CREATE TABLE {{.schema}}.leases (
    first_xid bigint NOT NULL,
    first_seq bigint NOT NULL,
    last_xid  bigint NOT NULL,
    last_seq  bigint NOT NULL,
    deadline  timestamptz NOT NULL,
    sub       int NOT NULL,
    acked     int NOT NULL DEFAULT 0,
    kind      smallint NOT NULL,
    slot      smallint NOT NULL,
    consumer  text NOT NULL,
    remaining int8multirange NOT NULL,
    CONSTRAINT leases_pkey PRIMARY KEY (sub, kind, first_xid, first_seq, slot)
) PARTITION BY LIST (slot);

-- What has expired, in the order in which it did.
CREATE INDEX leases_deadline_idx ON {{.schema}}.leases (sub, deadline);

-- The current slot of cursors and leases, which share a ring of their own.
CREATE SEQUENCE {{.schema}}.lease_slot MINVALUE 0 START 0;

-- Ring slots are truncated long before they need vacuum, and a vacuumed empty slot flips plans: no autovacuum.
-- lz4 costs a third of pglz's CPU; not every server is built with it.
DO $$
DECLARE
    lz4 boolean := (SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression');
BEGIN
    FOR i IN 0..3 LOOP
        EXECUTE format('CREATE TABLE {{.schema}}.%I PARTITION OF {{.schema}}.messages FOR VALUES IN (%s)
            WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)', 'messages_' || i, i);
        IF lz4 THEN
            EXECUTE format('ALTER TABLE {{.schema}}.%I ALTER payloads SET COMPRESSION lz4', 'messages_' || i);
        END IF;
        EXECUTE format('CREATE TABLE {{.schema}}.%I PARTITION OF {{.schema}}.cursors FOR VALUES IN (%s)
            WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)', 'cursors_' || i, i);
        EXECUTE format('CREATE TABLE {{.schema}}.%I PARTITION OF {{.schema}}.leases FOR VALUES IN (%s)
            WITH (fillfactor = 50, autovacuum_enabled = off, toast.autovacuum_enabled = off)', 'leases_' || i, i);
    END LOOP;
END $$;

-- One row: which schema this is and which binaries it serves.
CREATE TABLE {{.schema}}.log_state (
    key            boolean NOT NULL DEFAULT true CONSTRAINT log_state_pkey PRIMARY KEY CONSTRAINT log_state_key_check CHECK (key),
    version        int NOT NULL,  -- of the schema, set after each migration
    oldest_binary  int NOT NULL,  -- the oldest schema version whose binaries still work on this schema
    functions_hash text NOT NULL  -- of the engine's functions as installed
);

---- create above / drop below ----

DROP TABLE {{.schema}}.log_state, {{.schema}}.leases, {{.schema}}.cursors, {{.schema}}.messages,
    {{.schema}}.subscriptions, {{.schema}}.topics CASCADE;
DROP SEQUENCE {{.schema}}.message_base, {{.schema}}.message_slot, {{.schema}}.lease_slot;
