-- Stored events that say what they must, by kind of change; an event without its values is not counted.
SELECT count(*) FILTER (WHERE name = 'activity.entity.created' AND changes #> '{id,after}' IS NOT NULL) AS created,
       count(*) FILTER (WHERE name = 'activity.entity.updated'
                          AND changes #> '{revision,after}' <> changes #> '{revision,before}') AS updated,
       count(*) FILTER (WHERE name = 'activity.entity.deleted' AND changes #> '{id,before}' IS NOT NULL) AS deleted,
       count(*) AS rows,
       count(DISTINCT id) AS distinct_ids
FROM activity.events;
