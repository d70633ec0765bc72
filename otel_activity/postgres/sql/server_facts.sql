SELECT current_setting('server_version_num')::int AS version,
       current_setting('server_encoding') AS encoding,
       pg_is_in_recovery() AS standby,
       to_regnamespace(quote_ident(%(schema)s)) IS NOT NULL AS has_schema,
       to_regclass(quote_ident(%(schema)s) || '.schema_version') IS NOT NULL AS has_versions
