-- Field by field, newest first; an action that changed nothing has one line without a field.
SELECT
    event.time AS "Time", event.action AS "Action", coalesce(event.actor_id, event.actor_type) AS "Actor",
    change.key AS "Field", change.value ->> 'before' AS "Before", change.value ->> 'after' AS "After",
    event.attributes ->> 'activity.reason' AS "Reason", event.trace_id AS "Trace",
    event.transaction_id::text AS "Transaction"
FROM activity.events AS event
LEFT JOIN LATERAL jsonb_each(
    CASE jsonb_typeof(event.changes) WHEN 'object' THEN event.changes END
) AS change ON true
WHERE $__timeFilter(event.time)
    AND event.entity_type = ${entity_type:sqlstring} AND event.entity_id = ${entity_id:sqlstring}
ORDER BY event.time DESC, event.id DESC, change.key
LIMIT 500
