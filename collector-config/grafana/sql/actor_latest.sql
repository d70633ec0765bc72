-- The newest events of one actor.
SELECT
    time AS "Time", action AS "Action", outcome AS "Outcome", entity_type AS "Entity type",
    entity_id AS "Entity", service AS "Service", attributes ->> 'http.route' AS "Route", trace_id AS "Trace"
FROM activity.events
WHERE $__timeFilter(time) AND actor_id = ${actor:sqlstring}
ORDER BY time DESC
LIMIT 200
