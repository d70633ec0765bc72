"""OTLP in, PostgreSQL out: what ``otel-activity receive`` runs."""
