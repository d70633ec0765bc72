SELECT xid::text FROM {schema}.outbox ORDER BY xid DESC LIMIT 1
