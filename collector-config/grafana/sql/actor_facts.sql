-- One actor in numbers.
SELECT
    count(*) AS "Events",
    count(*) FILTER (WHERE outcome = 'failure') AS "Failures",
    count(DISTINCT (entity_type, entity_id)) AS "Entities",
    min(time) AS "First",
    max(time) AS "Last"
FROM activity.events
WHERE $__timeFilter(time) AND actor_id = ${actor:sqlstring}
