-- How completely changes are captured, over time: full, partial, statement.
SELECT
    date_bin($__interval_ms * interval '1 millisecond', time, timestamptz '2000-01-01 00:00:00Z') AS time,
    attributes ->> 'activity.capture' AS metric,
    count(*) AS value
FROM activity.events
WHERE $__timeFilter(time) AND attributes ? 'activity.capture'
GROUP BY 1, 2
ORDER BY 1
