-- The ids of what "arrivals" would return now, and the transactions that stored them.
SELECT e.id, %(next)s::bigint - ((%(next)s::bigint - e.xmin::text::bigint) & 4294967295) AS transaction
FROM {schema}.events AS e
WHERE {conditions}
  AND e.time >= now() - %(lookback)s
  AND ((%(next)s::bigint - e.xmin::text::bigint) & 4294967295) <= %(next)s::bigint - %(horizon)s::bigint
