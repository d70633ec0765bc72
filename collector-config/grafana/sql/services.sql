-- Choices of the variable "service".
SELECT DISTINCT service FROM activity.events WHERE $__timeFilter(time) ORDER BY service
