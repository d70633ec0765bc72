-- What the database itself says was changed: one row for each changed row of the example application,
-- written by a trigger in the same transaction, so it exists if and only if the change was committed.
-- {schema} is replaced by the quoted name of the schema.

CREATE TABLE IF NOT EXISTS {schema}.truth (
    seq       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid       xid8        NOT NULL DEFAULT pg_current_xact_id(),
    changed   timestamptz NOT NULL DEFAULT clock_timestamp(),
    relation  text        NOT NULL,
    operation text        NOT NULL, -- INSERT, UPDATE or DELETE
    key       jsonb       NOT NULL, -- array of the primary key's values
    old_row   jsonb,
    new_row   jsonb
);

-- The arguments are the names of the primary key's columns.
CREATE OR REPLACE FUNCTION {schema}.record_truth()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = {schema}, pg_temp
AS $function$
DECLARE
    old_row jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    new_row jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    key     jsonb := (
        SELECT jsonb_agg(coalesce(new_row, old_row) -> name ORDER BY position)
        FROM unnest(TG_ARGV) WITH ORDINALITY AS part (name, position)
    );
BEGIN
    INSERT INTO truth (relation, operation, key, old_row, new_row)
    VALUES (TG_TABLE_NAME, TG_OP, key, old_row, new_row);
    RETURN NULL;
END;
$function$;
