-- The oldest event: what is older was never stored, or retention has taken it away. Those of absurd times, for which no
-- month is ever made (ensure_partition), stay whatever is taken away.
SELECT min(time) AS oldest, clock_timestamp() AS clock
FROM {schema}.events
WHERE time >= now() - interval '20 years'
