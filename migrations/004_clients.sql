-- Who may use the REST API when it asks.

-- A client's id is a UUID of version 7, so that lists are in the order of creation. secret_hash is a PHC string of argon2id,
-- which has its own parameters: hashes from elsewhere may have others than ours. token_version is in each token; a token of
-- another version is refused, so raising it revokes all that there are. scopes is what tokens say, words between single
-- spaces: its length is bounded by the headers that tokens travel in. Fixed-width columns come first, the widest before others.
CREATE TABLE {{.schema}}.clients (
    id            uuid NOT NULL CONSTRAINT clients_pkey PRIMARY KEY,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    token_version int NOT NULL DEFAULT 1 CONSTRAINT clients_token_version_check CHECK (token_version >= 1),
    is_active     boolean NOT NULL,
    name          text NOT NULL CONSTRAINT clients_name_check CHECK (char_length(name) BETWEEN 1 AND 256),
    scopes        text NOT NULL CONSTRAINT clients_scopes_check CHECK (octet_length(scopes) BETWEEN 1 AND 4096),
    secret_hash   text NOT NULL CONSTRAINT clients_secret_hash_check
                  CHECK (secret_hash LIKE '$argon2id$%' AND octet_length(secret_hash) <= 512)
);

---- create above / drop below ----

DROP TABLE {{.schema}}.clients;
