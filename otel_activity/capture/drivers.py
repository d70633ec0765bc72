"""What drivers say about transactions: state, autocommit, and whether a failed COMMIT is certain."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from otel_activity.capture.transaction import Transaction

__all__ = [
    "State",
    "certainly_aborted",
    "driver_state",
    "is_autocommit",
    "is_lost",
    "leaves_open",
    "refused_by_server",
    "sqlstate",
    "state_of",
    "transaction_state",
]


class State(enum.Enum):
    """State of a transaction on the server, as far as the driver says."""

    OPEN = "open"
    FAILED = "failed"
    INSIDE = "open or failed"
    ENDED = "ended"
    UNKNOWN = "unknown"


# libpq's PGTransactionStatusType, the same numbers in psycopg and psycopg2: idle, active (an answer is
# outstanding), in a transaction, in a failed one, connection bad.
_LIBPQ: Final = {0: State.ENDED, 1: State.UNKNOWN, 2: State.OPEN, 3: State.FAILED, 4: State.UNKNOWN}

# What pg8000 keeps of the server's last answer; it has no public name for it. The answer to a COMMIT that was
# interrupted was not read, so a transaction that looks open may be over.
_LETTERS: Final = {b"I": State.ENDED, b"T": State.INSIDE, b"E": State.FAILED}

# SQLSTATEs that come from the server and still leave the outcome of a COMMIT open: connection
# exceptions, "statement completion unknown", and the server shutting down under the statement.
_UNCERTAIN_CLASSES: Final = ("08", "57P", "XX", "58")
_UNCERTAIN: Final = frozenset({"40003"})
_ENDS_CONNECTION: Final = frozenset({"FATAL", "PANIC"})

# Drivers whose commit() and rollback() send nothing under AUTOCOMMIT, even after a BEGIN by hand.
_SILENT: Final = frozenset({"psycopg2", "asyncpg"})


def state_of(transaction: Transaction) -> State:
    """What the driver's own connection says, asked once for each transaction at least. Never raises."""
    if transaction.is_driver:
        try:
            return _LIBPQ[transaction.anchor().pgconn.transaction_status]  # psycopg, without a detour
        except Exception as raised:  # noqa: BLE001 - another driver, or a closed connection
            pass_on(raised)
    return driver_state(transaction.driver())


def transaction_state(transaction: Transaction) -> State:
    """The state now; where the driver does not tell an error, the failed statement that was seen does."""
    state = state_of(transaction)
    if transaction.poisoned and state in (State.UNKNOWN, State.INSIDE):
        return State.FAILED
    return State.OPEN if state is State.INSIDE else state


def driver_state(driver: Any) -> State:
    """What the driver's own connection says. Never raises."""
    try:
        libpq = getattr(driver, "pgconn", None) or getattr(driver, "info", None)
        status = getattr(libpq, "transaction_status", None)
        if status is not None:
            return _LIBPQ.get(status, State.UNKNOWN)
        letter = getattr(driver, "_transaction_status", None)  # pg8000
        if letter is not None:
            return _LETTERS.get(letter, State.UNKNOWN)
        asked = getattr(driver, "is_in_transaction", None)  # asyncpg
        if asked is not None:
            return State.INSIDE if asked() else State.ENDED
        inside = getattr(driver, "in_transaction", None)  # sqlite3, aiosqlite
        if isinstance(inside, bool):
            return State.OPEN if inside else State.ENDED
    except Exception as raised:  # noqa: BLE001 - a closed connection may raise whatever it likes
        pass_on(raised)
        return State.UNKNOWN
    return State.UNKNOWN


def is_autocommit(dialect: Any, connection: Any) -> bool:
    """Whether the DBAPI connection is set to commit each statement by itself."""
    raw = connection.dbapi_connection
    if dialect.name == "sqlite":
        # Python 3.12 put an attribute of its own beside `isolation_level`; it decides when it is a bool.
        flag = getattr(raw, "autocommit", None)
        return flag if isinstance(flag, bool) else getattr(raw, "isolation_level", "") is None
    detect = getattr(dialect, "detect_autocommit_setting", None)
    if detect is not None:
        try:
            return bool(detect(raw))
        except Exception as raised:  # noqa: BLE001 - not implemented, or a dialect of somebody else
            pass_on(raised)
    return getattr(raw, "autocommit", False) is True


def is_lost(driver: Any, dialect: Any, error: BaseException) -> bool:
    """Whether the connection to the server is gone, as the driver or its error says."""
    if driver is None or isinstance(error, OSError):  # pg8000 lets errors of its socket through
        return True
    asked = getattr(driver, "is_closed", None)  # asyncpg
    closed = asked() if callable(asked) else getattr(driver, "closed", False)
    return bool(closed or dialect.is_disconnect(error, None, None))


def leaves_open(dialect: Any, connection: Any) -> bool:
    """Whether ``commit()`` and ``rollback()`` of this connection send nothing.

    Then a transaction that was begun by hand under AUTOCOMMIT stays open, whatever SQLAlchemy believes.
    """
    if dialect.driver not in _SILENT:
        return False
    return getattr(getattr(connection, "dbapi_connection", connection), "autocommit", False) is True


def sqlstate(error: BaseException) -> str | None:
    """The server's SQLSTATE, or None when the error did not come from a server."""
    for name in ("sqlstate", "pgcode"):
        code = getattr(error, name, None)
        if isinstance(code, str) and code:
            return code
    return _field(error, "C")


def refused_by_server(error: BaseException) -> bool:
    """Whether a PostgreSQL server refused a statement, which fails the transaction it ran in.

    asyncpg gives errors of its own a SQLSTATE too (a value that does not fit the column's type); the server
    never saw those statements, and the transaction goes on. Only the server's errors carry a severity.
    """
    return sqlstate(error) is not None and _severity(error) is not None


def certainly_aborted(error: BaseException) -> bool:
    """Whether an error raised by COMMIT proves that nothing was committed.

    Only an answer of the server does. A lost connection, a cancelled task or an error of the client
    leaves both possible; so does an error that takes the connection or the server down.
    """
    code = sqlstate(error)
    if code is None or code in _UNCERTAIN or _severity(error) in _ENDS_CONNECTION:
        return False
    return not code.startswith(_UNCERTAIN_CLASSES)


def _severity(error: BaseException) -> str | None:
    """Untranslated severity of a PostgreSQL error: libpq's diagnostics, asyncpg's own error, or pg8000's."""
    found = getattr(getattr(error, "diag", None), "severity_nonlocalized", None)
    found = found or getattr(error.__cause__, "severity_en", None)
    return found if isinstance(found, str) else _field(error, "V")


def _field(error: BaseException, letter: str) -> str | None:
    """pg8000 raises the fields of the server's error as they came, each by its letter."""
    fields = error.args[0] if error.args else None
    found = fields.get(letter) if isinstance(fields, dict) else None
    return found if isinstance(found, str) and found else None
