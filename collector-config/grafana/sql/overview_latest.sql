-- The newest events.
SELECT
    time AS "Time", action AS "Action", entity_type AS "Entity type", entity_id AS "Entity",
    coalesce(actor_id, actor_type) AS "Actor", service AS "Service", trace_id AS "Trace"
FROM activity.events
WHERE $__timeFilter(time) AND service IN (${service:sqlstring})
ORDER BY time DESC
LIMIT 100
