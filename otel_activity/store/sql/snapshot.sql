-- What this transaction sees: every transaction below "horizon" is over, none from "next" on has begun. "run" changes
-- when ids may have gone back: with another server, or when this one has recovered from a crash.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next,
       (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_wal) AS run
