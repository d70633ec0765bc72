-- Whether any event lies outside the months that have a partition.
SELECT EXISTS (SELECT FROM {schema}.events_default) AS outside
