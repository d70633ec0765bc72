SELECT count(*) AS count, max(quarantined_at) AS newest FROM {schema}.quarantine
