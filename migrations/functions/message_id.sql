-- message_id is a position as the UUID that clients see: version 8 (RFC 9562), xid in its first 60 free bits, seq in
-- its last 62. Ids sort in log order.
CREATE OR REPLACE FUNCTION {schema}.message_id(xid bigint, seq bigint) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (lpad(to_hex(xid >> 12), 12, '0') || '8' || lpad(to_hex(xid & 4095), 3, '0')
        || to_hex(seq | (1::bigint << 63)))::uuid;
