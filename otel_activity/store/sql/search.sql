-- One page of events, newest first. A row of events carries all but its resource, which many events share.
SELECT e.*, r.attributes AS resource
FROM {schema}.events AS e
LEFT JOIN {schema}.resources AS r ON r.id = e.resource_id
WHERE {conditions}
ORDER BY e.time DESC, e.id DESC
LIMIT %(limit)s
