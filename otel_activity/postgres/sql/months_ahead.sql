-- The current month, the following ones, and those whose rows had to go to the default partition; in UTC, and as
-- texts that mean the same whatever zone and style of dates the session has.
SELECT to_char(month, 'YYYY-MM-DD') || ' 00:00:00+00'
FROM (
    SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead) AS month
    FROM generate_series(0, %(months_ahead)s::int) AS ahead
    UNION
    SELECT DISTINCT date_trunc('month', time AT TIME ZONE 'UTC')
    FROM {schema}.events_default
    WHERE time >= now() - interval '20 years' AND time < now() + interval '1 year'
) AS months
ORDER BY month
