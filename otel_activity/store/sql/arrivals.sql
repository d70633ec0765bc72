-- Events stored by transactions that were not surely over when the last poll looked: all those with a
-- transaction id of at least "horizon". A subtransaction's id is above its parent's, so it is covered too.
-- xmin has 32 bits; its distance from the next id, taken modulo 2^32, is right across a wrap-around.
-- Events that the caller has seen are left out.
SELECT e.*, r.attributes AS resource,
       %(next)s::bigint - ((%(next)s::bigint - e.xmin::text::bigint) & 4294967295) AS transaction
FROM {schema}.events AS e
LEFT JOIN {schema}.resources AS r ON r.id = e.resource_id
WHERE {conditions}
  AND e.time >= now() - %(lookback)s
  AND ((%(next)s::bigint - e.xmin::text::bigint) & 4294967295) <= %(next)s::bigint - %(horizon)s::bigint
  AND e.id <> ALL (%(seen)s::uuid[])
ORDER BY e.time, e.id
LIMIT %(limit)s
