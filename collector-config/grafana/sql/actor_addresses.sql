-- From where one actor came.
SELECT
    attributes ->> 'client.address' AS "Address", attributes ->> 'user_agent.original' AS "User agent",
    count(*) AS "Events", min(time) AS "First", max(time) AS "Last"
FROM activity.events
WHERE $__timeFilter(time) AND actor_id = ${actor:sqlstring} AND attributes ? 'client.address'
GROUP BY 1, 2
ORDER BY "Last" DESC
LIMIT 50
