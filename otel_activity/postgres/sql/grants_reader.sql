-- A reader sees everything and cannot change anything.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON {schema}.events, {schema}.events_default, {schema}.resources, {schema}.quarantine,
    {schema}.schema_version TO {role};
