-- Who does most.
SELECT actor_id AS "Actor", actor_type AS "Type", count(*) AS "Events", max(time) AS "Last"
FROM activity.events
WHERE $__timeFilter(time) AND service IN (${service:sqlstring}) AND actor_id IS NOT NULL
GROUP BY actor_id, actor_type
ORDER BY "Events" DESC
LIMIT 20
