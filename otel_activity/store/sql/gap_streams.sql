-- What each stream has between two moments. One pass over the range, no sort: a stream whose number of events
-- is that of its places has no hole. What happened earlier may be stored later, so the times are of both kinds.
-- Records that a process delivered for another stream do not count as its own beats.
SELECT e.stream_id AS stream,
       min(e.service) AS service,
       min(e.sequence) AS first,
       max(e.sequence) AS last,
       count(*) AS events,
       count(*) FILTER (WHERE e.time < %(end)s) AS within,
       min(e.time) AS began,
       max(greatest(e.time, e.observed)) AS seen,
       min(e.time) FILTER (WHERE r.own AND e.name = 'activity.stream.opened') AS opened,
       max(r.heartbeat) FILTER (WHERE r.own) AS heartbeat,
       coalesce(bool_or(r.own AND e.name = 'activity.stream.closed'), false) AS closed
FROM {schema}.events AS e
LEFT JOIN LATERAL (
    SELECT e.attributes ->> 'activity.stream.subject.id' = e.stream_id::text AS own,
           CASE WHEN jsonb_typeof(e.attributes -> 'activity.stream.heartbeat') = 'number'
                THEN least((e.attributes ->> 'activity.stream.heartbeat')::numeric, 86400)::float END AS heartbeat
    WHERE e.name LIKE 'activity.stream.%%'
) AS r ON true
WHERE e.time >= %(since)s AND e.time < %(until)s
  AND e.stream_id IS NOT NULL AND e.sequence IS NOT NULL
GROUP BY e.stream_id
