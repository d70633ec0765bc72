-- Choices of the variable "entity_type".
SELECT DISTINCT entity_type FROM activity.events
WHERE $__timeFilter(time) AND entity_type IS NOT NULL
ORDER BY entity_type
