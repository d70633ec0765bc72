INSERT INTO {schema}.schema_version (version, name) VALUES ({version}, {name})
