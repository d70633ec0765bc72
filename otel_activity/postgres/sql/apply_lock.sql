-- One apply at a time. A transaction's lock, not a session's: it works behind a pooler.
SELECT pg_advisory_xact_lock(hashtextextended('otel_activity schema ' || %(schema)s, 0))
