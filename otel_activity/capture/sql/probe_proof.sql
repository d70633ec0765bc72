-- Whether this role may use the functions that prove a commit, and which cluster this is. Runs once for each new
-- connection, outside of any transaction of the application. On a standby there is nothing to prove yet.
SELECT (pg_control_system()).system_identifier::text,
       CASE WHEN pg_is_in_recovery() THEN NULL
            ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
       current_database(),
       has_function_privilege('pg_current_xact_id_if_assigned()', 'EXECUTE'),
       (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_wal)
