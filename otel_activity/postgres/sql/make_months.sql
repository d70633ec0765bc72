-- Months of UTC: a month later in another zone may be two months later there.
SELECT {schema}.ensure_partition(
    (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead)) AT TIME ZONE 'UTC'
)
FROM generate_series(0, {months_ahead}) AS ahead
