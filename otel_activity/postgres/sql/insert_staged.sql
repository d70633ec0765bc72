-- No conflict target: naming one would need SELECT on the table.
INSERT INTO {schema}.events ({columns})
SELECT {columns} FROM pg_temp.otel_activity_staging
ON CONFLICT DO NOTHING
