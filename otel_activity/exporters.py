"""Exporters of the OpenTelemetry SDK that are built from our parts."""

from __future__ import annotations

from otel_activity.errors import ConfigurationError
from otel_activity.postgres.exporter import PostgresEventExporter
from otel_activity.settings import Settings
from otel_activity.telemetry import EventLogExporter

__all__ = ["PostgresLogExporter"]


class PostgresLogExporter(EventLogExporter):
    """Stores audit records in PostgreSQL; ``OTEL_LOGS_EXPORTER=activity_postgres`` in the SDK's own pipeline.

    Records of other scopes, such as the application's own logs, are passed over. The connection is opened
    with the first batch. `export` returns when the batch is stored: the SDK's batch processor forgets a batch
    whose export failed.

    Args:
        dsn: connection string; ``OTEL_ACTIVITY_POSTGRES_DSN`` by default.
        schema: schema of the tables; ``OTEL_ACTIVITY_POSTGRES_SCHEMA`` by default.

    Raises:
        ConfigurationError: there is no connection string, or it is malformed.
    """

    def __init__(self, dsn: str | None = None, schema: str | None = None) -> None:
        settings = Settings.from_env(postgres_dsn=dsn, postgres_schema=schema)
        if settings.postgres_dsn is None:
            raise ConfigurationError(
                "OTEL_ACTIVITY_POSTGRES_DSN",
                "",
                "the activity_postgres exporter needs to know where to store",
                "set it to postgresql://user:password@host:5432/database",
            )
        super().__init__(PostgresEventExporter(settings.postgres_dsn, settings.postgres_schema))
