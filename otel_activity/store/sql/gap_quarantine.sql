-- Records that the server refused: they have places, and are kept elsewhere.
SELECT record FROM {schema}.quarantine WHERE event_time >= %(since)s::numeric
