-- When one entity was changed.
SELECT
    date_bin($__interval_ms * interval '1 millisecond', time, timestamptz '2000-01-01 00:00:00Z') AS time,
    coalesce(action, name) AS metric,
    count(*) AS value
FROM activity.events
WHERE $__timeFilter(time) AND entity_type = ${entity_type:sqlstring} AND entity_id = ${entity_id:sqlstring}
GROUP BY 1, 2
ORDER BY 1
