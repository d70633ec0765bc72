DELETE FROM {schema}.outbox AS gone
USING unnest(%(xids)s::text[], %(numbers)s::bigint[]) AS done (xid, n)
WHERE gone.xid = done.xid::xid8 AND gone.n = done.n
