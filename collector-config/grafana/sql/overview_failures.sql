-- What went wrong last.
SELECT
    time AS "Time", action AS "Action", entity_type AS "Entity type", entity_id AS "Entity",
    coalesce(actor_id, actor_type) AS "Actor", attributes ->> 'error.type' AS "Error", trace_id AS "Trace"
FROM activity.events
WHERE $__timeFilter(time) AND service IN (${service:sqlstring}) AND outcome = 'failure'
ORDER BY time DESC
LIMIT 50
