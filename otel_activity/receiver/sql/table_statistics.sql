-- Tables are bounded in number, oldest first: the same ones each time.
SELECT
    current_database() AS database,
    stat.schemaname || '.' || stat.relname AS "table",
    stat.n_live_tup AS live,
    stat.n_dead_tup AS dead,
    stat.n_tup_ins AS ins,
    stat.n_tup_upd AS upd,
    stat.n_tup_del AS del,
    stat.n_tup_hot_upd AS hot_upd,
    stat.seq_scan AS seq_scan,
    stat.vacuum_count AS vacuum_count,
    pg_relation_size(stat.relid) AS size,
    coalesce(io.heap_blks_read, 0) AS heap_read,
    coalesce(io.heap_blks_hit, 0) AS heap_hit,
    coalesce(io.idx_blks_read, 0) AS idx_read,
    coalesce(io.idx_blks_hit, 0) AS idx_hit,
    coalesce(io.toast_blks_read, 0) AS toast_read,
    coalesce(io.toast_blks_hit, 0) AS toast_hit,
    coalesce(io.tidx_blks_read, 0) AS tidx_read,
    coalesce(io.tidx_blks_hit, 0) AS tidx_hit
FROM pg_stat_user_tables AS stat
JOIN pg_statio_user_tables AS io USING (relid)
ORDER BY stat.relid
LIMIT %(most)s
