-- The application's tables, the columns of their keys in order, and the type of each column.
SELECT
    relation.relname AS name,
    (
        SELECT array_agg(attribute.attname::text ORDER BY part.position)
        FROM pg_constraint AS primary_key
        CROSS JOIN unnest(primary_key.conkey) WITH ORDINALITY AS part (number, position)
        JOIN pg_attribute AS attribute
            ON attribute.attrelid = relation.oid AND attribute.attnum = part.number
        WHERE primary_key.conrelid = relation.oid AND primary_key.contype = 'p'
    ) AS key,
    (
        SELECT jsonb_object_agg(attribute.attname, CASE WHEN type.typtype = 'e' THEN 'enum' ELSE type.typname END)
        FROM pg_attribute AS attribute
        JOIN pg_type AS type ON type.oid = attribute.atttypid
        WHERE attribute.attrelid = relation.oid AND attribute.attnum > 0 AND NOT attribute.attisdropped
    ) AS types
FROM pg_class AS relation
JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
WHERE namespace.nspname = %(schema)s AND relation.relkind = 'r' AND relation.relname <> 'truth'
ORDER BY relation.relname
