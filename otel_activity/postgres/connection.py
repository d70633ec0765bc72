"""Connections to the store: bounded in time, usable behind a pooler, not traced."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from otel_activity.postgres.failures import connect_failure
from otel_activity.settings import mask_dsn

__all__ = ["connect"]

APPLICATION_NAME: Final = "otel_activity"
CONNECT_TIMEOUT: Final = 10.0
"""Seconds. libpq counts whole seconds and takes fewer than two as two."""
SILENCE: Final = 30_000
"""Milliseconds after which sent data that nobody acknowledged ends the connection."""


def connect(
    dsn: str, *, application_name: str = APPLICATION_NAME, connect_timeout: float = CONNECT_TIMEOUT
) -> psycopg.Connection[Any]:
    """A connection in autocommit mode that does not wait for ever on a network that went silent.

    What the DSN itself says about any of these settings wins.

    Raises:
        StoreUnavailable: nobody answers there.
        StoreRefused: the server answered and refuses, or the DSN is malformed.
    """
    defaults: dict[str, Any] = {
        "fallback_application_name": application_name,
        "connect_timeout": max(2, round(connect_timeout)),
        "client_encoding": "UTF8",
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": SILENCE,
    }
    try:
        given = conninfo_to_dict(dsn)
        # No server-side prepared statements: a pooler in transaction mode would lose them.
        return psycopg.connect(**(defaults | given), autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        # The cause of a malformed DSN quotes it, password included.
        cause = None if isinstance(error, psycopg.ProgrammingError) else error
        raise connect_failure(error, mask_dsn(dsn)) from cause
