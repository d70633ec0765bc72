-- What any user may ask: the server, its clock, and what this user may do with the store.
-- A table that is missing gives NULL, not an error.
SELECT clock_timestamp() AS clock,
       current_setting('server_version') AS version,
       pg_is_in_recovery() AS standby,
       current_setting('default_transaction_read_only')::boolean AS read_only,
       current_user::text AS role,
       has_schema_privilege(n.oid, 'USAGE') AS can_use,
       has_table_privilege(to_regclass(q.prefix || 'events'), 'INSERT')
           AND has_table_privilege(to_regclass(q.prefix || 'resources'), 'INSERT')
           AND has_table_privilege(to_regclass(q.prefix || 'quarantine'), 'INSERT') AS can_insert,
       has_table_privilege(to_regclass(q.prefix || 'events'), 'SELECT')
           AND has_table_privilege(to_regclass(q.prefix || 'resources'), 'SELECT') AS can_select,
       has_table_privilege(to_regclass(q.prefix || 'quarantine'), 'SELECT') AS can_select_quarantine,
       has_table_privilege(to_regclass(q.prefix || 'events_default'), 'SELECT') AS can_select_outside,
       has_table_privilege(to_regclass(q.prefix || 'events'), 'UPDATE')
           OR has_table_privilege(to_regclass(q.prefix || 'events'), 'DELETE')
           OR has_table_privilege(to_regclass(q.prefix || 'events'), 'TRUNCATE') AS can_change,
       has_database_privilege(current_database(), 'TEMPORARY') AS can_stage
FROM (SELECT quote_ident(%(schema)s) || '.' AS prefix) AS q
LEFT JOIN pg_namespace AS n ON n.nspname = %(schema)s
