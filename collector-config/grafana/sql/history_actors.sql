-- Who changed one entity.
SELECT coalesce(actor_id, actor_type) AS "Actor", count(*) AS "Events", max(time) AS "Last"
FROM activity.events
WHERE $__timeFilter(time) AND entity_type = ${entity_type:sqlstring} AND entity_id = ${entity_id:sqlstring}
GROUP BY 1
ORDER BY "Events" DESC
LIMIT 20
