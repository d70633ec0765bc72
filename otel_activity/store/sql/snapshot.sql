-- What this transaction sees: every transaction below "horizon" is over, none from "next" on has begun.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next
