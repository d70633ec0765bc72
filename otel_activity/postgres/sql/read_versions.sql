SELECT version FROM {schema}.schema_version ORDER BY version
