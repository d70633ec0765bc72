-- The numbers at the top, in one pass.
SELECT
    count(*) AS "Events",
    count(DISTINCT actor_id) AS "Actors",
    count(*) FILTER (WHERE outcome = 'failure') AS "Failures",
    count(*) FILTER (WHERE actor_type = 'unknown') AS "Unknown actor"
FROM activity.events
WHERE $__timeFilter(time) AND service IN (${service:sqlstring})
