SELECT (pg_control_system()).system_identifier::text,
       CASE WHEN pg_is_in_recovery() THEN NULL
            ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
       (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_wal)
