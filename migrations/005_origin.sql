-- Where the log was written: positions are transaction ids, which mean nothing in another cluster.

-- messages is the oid of that table, which restoring a dump changes and pg_upgrade does not. Restored twice in the same
-- way it may be the same again, so written_by is the transaction that wrote this row, as its xmin says: no copy of the row
-- has the same. Nothing updates this row but repair.
CREATE TABLE {{.schema}}.origin (
    key        boolean NOT NULL DEFAULT true CONSTRAINT origin_pkey PRIMARY KEY CONSTRAINT origin_key_check CHECK (key),
    messages   oid NOT NULL,
    written_by xid NOT NULL
);
INSERT INTO {{.schema}}.origin (messages, written_by) VALUES ('{{.schema}}.messages'::regclass, pg_current_xact_id()::xid);

-- The timeline of the WAL that message_base belongs to; 0 before the first publish. A sequence, since it must hold however
-- the transaction ends that notices a new one; see follow_timeline.
CREATE SEQUENCE {{.schema}}.timeline MINVALUE 0 START 0;

---- create above / drop below ----

DROP TABLE {{.schema}}.origin;
DROP SEQUENCE {{.schema}}.timeline;
