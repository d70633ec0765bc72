"""The store in PostgreSQL: schema, writer, exporter."""
