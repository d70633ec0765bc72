-- Time of the newest event, and whether any event lies outside the months that have a partition.
SELECT (SELECT max(time) FROM {schema}.events WHERE time <= now() + interval '1 day') AS newest,
       EXISTS (SELECT FROM {schema}.events_default) AS outside
