SELECT count(*) AS count
FROM {schema}.events AS e
WHERE {conditions}
