-- The places that are missing in some streams, each run of them as one row, with the events before and behind it.
SELECT stream, previous + 1 AS first, sequence - 1 AS last, before, seen
FROM (
    SELECT stream_id AS stream, sequence, greatest(time, observed) AS seen,
           lag(sequence, 1, 0::bigint) OVER stream AS previous,
           lag(least(time, observed)) OVER stream AS before
    FROM {schema}.events
    WHERE time >= %(since)s AND time < %(until)s
      AND stream_id = ANY (%(streams)s::uuid[]) AND sequence IS NOT NULL
    WINDOW stream AS (PARTITION BY stream_id ORDER BY sequence)
) AS places
WHERE sequence > previous + 1
ORDER BY stream, first
