-- Events over time, a line for each service.
SELECT
    date_bin($__interval_ms * interval '1 millisecond', time, timestamptz '2000-01-01 00:00:00Z') AS time,
    service AS metric,
    count(*) AS value
FROM activity.events
WHERE $__timeFilter(time) AND service IN (${service:sqlstring})
GROUP BY 1, 2
ORDER BY 1
