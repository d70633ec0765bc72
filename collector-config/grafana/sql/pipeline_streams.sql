-- Each process: where its sequence begins and ends, and how many numbers are not in the store. A stream that
-- began before the range, or is still being delivered, is short of nothing.
SELECT
    stream_id::text AS "Stream", service AS "Service", min(time) AS "First", max(time) AS "Last",
    count(*) AS "Events", max(sequence) - min(sequence) + 1 - count(DISTINCT sequence) AS "Missing"
FROM activity.events
WHERE $__timeFilter(time) AND stream_id IS NOT NULL
GROUP BY stream_id, service
ORDER BY "Missing" DESC, "Last" DESC
LIMIT 50
