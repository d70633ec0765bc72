INSERT INTO {schema}.quarantine (digest, event_id, event_time, event_name, resource_id, sqlstate, message, record)
VALUES (
    %(digest)s, %(event_id)s, %(event_time)s, %(event_name)s, %(resource_id)s, %(sqlstate)s, %(message)s, %(record)s
)
ON CONFLICT DO NOTHING
