-- Qualified: the output column of the same name is text, and sorts as such.
SELECT waiting.xid::text FROM {schema}.outbox AS waiting ORDER BY waiting.xid DESC LIMIT 1
