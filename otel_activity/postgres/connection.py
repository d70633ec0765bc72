"""Connections to the store: bounded in time, usable behind a pooler, not traced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from otel_activity.masking import mask_dsn
from otel_activity.postgres.failures import connect_failure

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["PatientConnection", "connect"]

APPLICATION_NAME: Final = "otel_activity"
CONNECT_TIMEOUT: Final = 10.0
"""Seconds. libpq counts whole seconds and takes fewer than two as two."""
SILENCE: Final = 30_000
"""Milliseconds after which sent data that nobody acknowledged ends the connection."""


class PatientConnection(psycopg.Connection[Any]):
    """A connection that does not wait for an answer for ever.

    The server's own time limits need a server that runs, and TCP's need one whose machine is gone: a frozen
    server, or a proxy that lost it, acknowledges everything and never answers.

    Attributes:
        patience: seconds to wait for one answer; None for ever.
    """

    patience: float | None = None
    _silent = False

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """As psycopg's, which wakes the generator several times a second even if nothing arrives.

        Raises:
            psycopg.OperationalError: there was no answer in time. The connection is of no more use.
        """
        if self.patience is not None:
            gen = self._within(gen, self.patience)
        return super().wait(gen, *args, **kwargs)

    def _within(self, gen: Generator[Any, Any, Any], patience: float) -> Generator[Any, Any, Any]:
        # Who was silent once is not waited for again: cleaning up (rollback) would double the time.
        deadline = time.monotonic() + (0 if self._silent else patience)
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and time.monotonic() >= deadline:
                    self._silent = True
                    raise psycopg.OperationalError(f"no answer within {patience:g} s")
                state = gen.send(ready)
        except StopIteration as done:
            return done.value


def connect(
    dsn: str,
    *,
    application_name: str = APPLICATION_NAME,
    connect_timeout: float = CONNECT_TIMEOUT,
    patience: float | None = None,
) -> PatientConnection:
    """A connection in autocommit mode that does not wait for ever on a network that went silent.

    What the DSN itself says about any of these settings wins, but for the encoding: what is sent is UTF-8.

    Raises:
        StoreUnavailable: nobody answers there.
        StoreRefused: the server answered and refuses, or the DSN is malformed.
    """
    defaults: dict[str, Any] = {
        "fallback_application_name": application_name,
        "connect_timeout": max(2, round(connect_timeout)),
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": SILENCE,
    }
    try:
        given = conninfo_to_dict(dsn)
        # No server-side prepared statements: a pooler in transaction mode would lose them.
        settings = defaults | given | {"client_encoding": "UTF8"}
        connection = PatientConnection.connect(**settings, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        # The cause of a malformed DSN quotes it, password included.
        cause = None if isinstance(error, psycopg.ProgrammingError) else error
        raise connect_failure(error, mask_dsn(dsn)) from cause
    # Whatever is the default of the role: who waited for a lock wants to see what the other one did.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    connection.patience = patience
    return connection
