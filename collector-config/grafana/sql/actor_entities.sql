-- To what one actor did it.
SELECT entity_type AS "Entity type", action AS "Action", count(*) AS "Events", max(time) AS "Last"
FROM activity.events
WHERE $__timeFilter(time) AND actor_id = ${actor:sqlstring}
GROUP BY entity_type, action
ORDER BY "Events" DESC
LIMIT 50
