-- Every entity event that this run's application stored, in the order in which it was captured.
SELECT
    event.transaction_id::text,
    event.attributes ->> 'db.collection.name' AS relation,
    event.attributes ->> 'db.operation.name' AS operation,
    event.entity_id,
    event.entity_type,
    event.changes
FROM {schema}.events AS event
JOIN {schema}.resources AS resource ON resource.id = event.resource_id
WHERE resource.attributes ->> 'service.instance.id' = %(instance)s
    AND event.name LIKE 'activity.entity.%%'
ORDER BY event.time, event.id
