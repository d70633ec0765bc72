-- Below xmin every transaction has ended: nothing can appear before what is read here.
SELECT xid::text, n, event::text, resource::text
FROM {schema}.outbox
WHERE xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY xid, n
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED
