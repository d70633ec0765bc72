-- The oldest row by the index: EXISTS would be planned as a scan of the whole table.
SELECT coalesce((SELECT waiting.xid FROM {schema}.outbox AS waiting ORDER BY waiting.xid LIMIT 1) <= %(xid)s::text::xid8, false)
