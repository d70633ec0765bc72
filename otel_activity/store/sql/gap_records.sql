-- What was said about losses, and about streams that ended with their process.
SELECT time, name, service, stream_id AS stream, sequence, attributes
FROM {schema}.events
WHERE time >= %(since)s AND time < %(until)s
  AND (name IN ('activity.gap', 'activity.stream.repeated')
       OR (name = 'activity.stream.closed' AND attributes ? 'activity.stream.taken_over'))
ORDER BY time, id
