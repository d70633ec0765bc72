SELECT
    current_database() AS database,
    schemaname || '.' || relname AS "table",
    indexrelname AS index,
    idx_scan AS scans,
    pg_relation_size(indexrelid) AS size
FROM pg_stat_user_indexes
ORDER BY indexrelid
LIMIT %(most)s
