-- One entity in numbers.
SELECT
    count(*) AS "Events",
    count(DISTINCT actor_id) AS "Actors",
    min(time) AS "First",
    max(time) AS "Last"
FROM activity.events
WHERE $__timeFilter(time) AND entity_type = ${entity_type:sqlstring} AND entity_id = ${entity_id:sqlstring}
