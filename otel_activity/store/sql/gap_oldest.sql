-- The oldest event: what is older was never stored, or retention has taken it away.
SELECT min(time) AS oldest, clock_timestamp() AS clock FROM {schema}.events
