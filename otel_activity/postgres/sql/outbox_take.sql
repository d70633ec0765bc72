-- Below xmin every transaction has ended: nothing can appear before what is read here. Rows whose ids this cluster
-- has not given out yet are another one's, restored or replicated into this one: nothing will appear before them.
-- Qualified: the output column of the same name is text, and sorts as such.
SELECT restored.* FROM (
    SELECT waiting.xid::text, waiting.n, waiting.event::text, waiting.resource::text
    FROM {schema}.outbox AS waiting
    WHERE waiting.xid >= pg_snapshot_xmax(pg_current_snapshot())
    ORDER BY waiting.xid, waiting.n
    LIMIT %(limit)s + %(skip)s
    FOR UPDATE SKIP LOCKED
) AS restored
UNION ALL
SELECT ended.* FROM (
    SELECT waiting.xid::text, waiting.n, waiting.event::text, waiting.resource::text
    FROM {schema}.outbox AS waiting
    WHERE waiting.xid < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY waiting.xid, waiting.n
    LIMIT %(limit)s + %(skip)s
    FOR UPDATE SKIP LOCKED
) AS ended
LIMIT %(limit)s OFFSET %(skip)s
