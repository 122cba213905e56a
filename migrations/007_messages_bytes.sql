-- How large the payloads and attributes of a record batch are, before compression; NULL in those of before. A claim hands out
-- so much at once: see there.
ALTER TABLE {{.schema}}.messages ADD COLUMN bytes int;

---- create above / drop below ----

ALTER TABLE {{.schema}}.messages DROP COLUMN bytes;
