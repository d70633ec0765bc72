-- The truth: one row for each row that a statement wrote, in the same transaction as the statement.
CREATE TABLE oracle_row (
    seq bigserial PRIMARY KEY,
    txid xid8 NOT NULL,
    table_name text NOT NULL,
    operation text NOT NULL,
    old jsonb,
    new jsonb
);

CREATE FUNCTION oracle_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO oracle_row (txid, table_name, operation, old, new)
    VALUES (
        pg_current_xact_id(),
        TG_TABLE_NAME,
        TG_OP,
        CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END
    );
    RETURN NULL;
END
$$;
