-- The current month, the following ones, and those whose rows had to go to the default partition.
SELECT now() + make_interval(months => ahead) AS month
FROM generate_series(0, %(months_ahead)s::int) AS ahead
UNION
SELECT DISTINCT date_trunc('month', time, 'UTC')
FROM {schema}.events_default
WHERE time >= now() - interval '20 years' AND time < now() + interval '1 year'
ORDER BY month
