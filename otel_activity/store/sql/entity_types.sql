-- The types of entity that have events, in order. Each costs one look into the index on entities, not one for
-- each event of the type.
WITH RECURSIVE types (type) AS (
    (SELECT e.entity_type FROM {schema}.events AS e
     WHERE e.entity_type IS NOT NULL AND {conditions} ORDER BY e.entity_type LIMIT 1)
    UNION ALL
    SELECT (SELECT e.entity_type FROM {schema}.events AS e
            WHERE e.entity_type > types.type AND {conditions} ORDER BY e.entity_type LIMIT 1)
    FROM types WHERE types.type IS NOT NULL
)
SELECT type FROM types WHERE type IS NOT NULL LIMIT %(limit)s
