SELECT {schema}.ensure_partition(now() + make_interval(months => ahead))
FROM generate_series(0, {months_ahead}) AS ahead
