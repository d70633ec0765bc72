"""What drivers say about transactions: state, autocommit, and whether a failed COMMIT is certain."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from otel_activity.capture.transactions import Transaction

__all__ = ["State", "certainly_aborted", "is_autocommit", "sqlstate", "transaction_state"]


class State(enum.Enum):
    """State of a transaction on the server, as far as the driver says."""

    OPEN = "open"
    FAILED = "failed"
    ENDED = "ended"
    UNKNOWN = "unknown"


# libpq's PGTransactionStatusType, the same numbers in psycopg and psycopg2.
_LIBPQ: Final = {0: State.ENDED, 1: State.OPEN, 2: State.OPEN, 3: State.FAILED, 4: State.UNKNOWN}

# SQLSTATEs that come from the server and still leave the outcome of a COMMIT open: connection
# exceptions, "statement completion unknown", and the server shutting down under the statement.
_UNCERTAIN_CLASSES: Final = ("08", "57P", "XX", "58")
_UNCERTAIN: Final = frozenset({"40003"})


def transaction_state(transaction: Transaction) -> State:
    """The state before COMMIT is sent. asyncpg has no public one: then a failed statement tells."""
    raw = transaction.raw()
    status = _libpq_status(raw)
    if status is not None:
        return _LIBPQ.get(status, State.UNKNOWN)
    return State.FAILED if transaction.poisoned else State.UNKNOWN


def _libpq_status(raw: Any) -> int | None:
    driver = getattr(raw, "driver_connection", None) or raw  # adapted async connections wrap the real one
    libpq = getattr(driver, "pgconn", None)
    if libpq is None:
        libpq = getattr(driver, "info", None)
    status = getattr(libpq, "transaction_status", None)
    return int(status) if status is not None else None


def is_autocommit(dialect: Any, connection: Any) -> bool:
    """Whether the DBAPI connection commits each statement by itself."""
    detect = getattr(dialect, "detect_autocommit_setting", None)
    if detect is not None:
        try:
            return bool(detect(connection))
        except NotImplementedError:
            pass
    raw = connection.dbapi_connection
    if dialect.name == "sqlite":
        return getattr(raw, "isolation_level", "") is None and getattr(raw, "autocommit", True) is not False
    return getattr(raw, "autocommit", False) is True


def sqlstate(error: BaseException) -> str | None:
    """The server's SQLSTATE, or None when the error did not come from a server."""
    for name in ("sqlstate", "pgcode"):
        code = getattr(error, name, None)
        if isinstance(code, str) and code:
            return code
    return None


def certainly_aborted(error: BaseException) -> bool:
    """Whether an error raised by COMMIT proves that nothing was committed.

    Only an answer of the server does. A lost connection, a cancelled task or an error of the client
    leaves both possible.
    """
    code = sqlstate(error)
    if code is None or code in _UNCERTAIN:
        return False
    return not code.startswith(_UNCERTAIN_CLASSES)
