-- What the store put aside.
SELECT
    quarantined_at AS "Time", event_name AS "Event", sqlstate AS "SQLSTATE", message AS "Reason",
    event_id AS "Id"
FROM activity.quarantine
WHERE $__timeFilter(quarantined_at)
ORDER BY quarantined_at DESC
LIMIT 50
