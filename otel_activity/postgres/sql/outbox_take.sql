-- Below xmin every transaction has ended: nothing can appear before what is read here.
-- Qualified: the output column of the same name is text, and sorts as such.
SELECT waiting.xid::text, waiting.n, waiting.event::text, waiting.resource::text
FROM {schema}.outbox AS waiting
WHERE waiting.xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY waiting.xid, waiting.n
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED
