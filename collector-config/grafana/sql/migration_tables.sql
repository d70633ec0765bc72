-- Which tables the service records: what has no line here is not captured, or not written to.
SELECT
    attributes ->> 'db.collection.name' AS "Table",
    count(*) FILTER (WHERE action = 'create') AS "Inserts",
    count(*) FILTER (WHERE action = 'update') AS "Updates",
    count(*) FILTER (WHERE action = 'delete') AS "Deletes",
    min(time) AS "First", max(time) AS "Last"
FROM activity.events
WHERE $__timeFilter(time) AND attributes ? 'db.collection.name'
GROUP BY 1
ORDER BY 1
LIMIT 200
