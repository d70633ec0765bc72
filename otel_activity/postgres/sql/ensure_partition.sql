SELECT {schema}.ensure_partition(%(instant)s::timestamptz, %(move_rows)s)
