SELECT count(*) AS count FROM {schema}.quarantine
