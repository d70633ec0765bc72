-- What is changed most.
SELECT entity_type AS "Entity type", count(*) AS "Events", count(DISTINCT entity_id) AS "Entities"
FROM activity.events
WHERE $__timeFilter(time) AND service IN (${service:sqlstring}) AND entity_type IS NOT NULL
GROUP BY entity_type
ORDER BY "Events" DESC
LIMIT 20
