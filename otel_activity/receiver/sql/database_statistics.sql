SELECT
    datname AS database,
    numbackends AS backends,
    xact_commit AS commits,
    xact_rollback AS rollbacks,
    deadlocks,
    pg_database_size(datid) AS size,
    (SELECT count(*) FROM pg_stat_user_tables) AS tables
FROM pg_stat_database
WHERE datname = current_database()
