-- When what is due was last searched for from the beginning; see due_from.
ALTER TABLE {{.schema}}.cursors ADD COLUMN full_at timestamptz NOT NULL DEFAULT '-infinity';

---- create above / drop below ----

ALTER TABLE {{.schema}}.cursors DROP COLUMN full_at;
