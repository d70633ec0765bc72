"""An example application: people, projects, tasks and comments, with FastAPI and SQLAlchemy.

It knows nothing of auditing. ``otel-activity demo`` runs it as it is under ``opentelemetry-instrument``.
"""
