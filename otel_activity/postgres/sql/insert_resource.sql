INSERT INTO {schema}.resources (id, attributes) VALUES (%(id)s, %(attributes)s::jsonb) ON CONFLICT DO NOTHING
