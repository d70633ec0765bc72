-- By the catalog, not by to_regclass: that is refused to who may not use the schema.
SELECT current_user::text,
       current_database()::text,
       found.oid IS NOT NULL,
       coalesce(
           found.usable
           AND has_table_privilege(found.oid, 'INSERT')
           AND has_sequence_privilege(
               (SELECT objid FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
                  AND refobjid = found.oid AND deptype = 'a'
                  AND objid IN (SELECT oid FROM pg_class WHERE relkind = 'S')),
               'USAGE, UPDATE'
           ),
           false
       ),
       coalesce(
           found.usable AND has_table_privilege(found.oid, 'SELECT') AND NOT row_security_active(found.oid), false
       )
FROM (SELECT) AS always
LEFT JOIN (
    SELECT pg_class.oid, has_schema_privilege(pg_namespace.oid, 'USAGE') AS usable
    FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %(schema)s AND relname = 'outbox'
) AS found ON true
