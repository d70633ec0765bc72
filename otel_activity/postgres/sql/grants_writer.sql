-- A writer adds events and cannot read, change or remove them. It also needs TEMPORARY on the database
-- (PUBLIC has it unless it was revoked): a batch that was sent before is compared through a temporary table.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT INSERT ON {schema}.events, {schema}.resources, {schema}.quarantine TO {role};
GRANT SELECT ON {schema}.schema_version TO {role};
GRANT EXECUTE ON FUNCTION {schema}.ensure_partition TO {role};
