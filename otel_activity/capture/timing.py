"""How long statements take, and how long one waits for a connection: for metrics, where they are wanted.

Inside the guard that is around the driver's execute anyway. Where it is not wanted nothing is in the way.
"""

from __future__ import annotations

import functools
import re
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol

from otel_activity import semconv
from otel_activity.capture import drivers
from otel_activity.capture.checkout import CheckoutHooks
from otel_activity.capture.guard import internal_error
from otel_activity.capture.pools import pool_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Timings", "WaitHooks", "timed"]

_MARK: Final = "_otel_activity_timed"
_FIRST: Final = re.compile(r"\s*([A-Za-z]{2,10})\b")
# fmt: off
_OPERATIONS: Final = frozenset({
    "ALTER", "ANALYZE", "BEGIN", "CALL", "COMMIT", "COPY", "CREATE", "DELETE", "DO", "DROP", "END", "EXECUTE",
    "EXPLAIN", "FETCH", "GRANT", "INSERT", "LISTEN", "LOCK", "MERGE", "NOTIFY", "PRAGMA", "PREPARE",
    "REFRESH", "REINDEX", "RELEASE", "REPLACE", "REVOKE", "ROLLBACK", "SAVEPOINT", "SELECT", "SET", "SHOW",
    "START", "TRUNCATE", "UPDATE", "VACUUM", "VALUES", "WITH",
})
# fmt: on
"""First words that become ``db.operation.name``: a text may begin with anything."""


class Timings(Protocol):
    """Who records what was timed, in the context of the statement: exemplars lead to its trace."""

    def operation(self, seconds: float, attributes: Mapping[str, str]) -> None:
        """A statement took so long."""

    def connection_wait(self, seconds: float, pool: str) -> None:
        """A pool took so long to give out a connection."""


def timed(original: Any, timings: Timings) -> Any:
    """A dialect's ``do_execute``, ``do_executemany`` or ``do_execute_no_params`` that is timed."""
    many = original.__name__ == "do_executemany"

    @functools.wraps(original)
    def execute(dialect: Any, cursor: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
        context = kwargs.get("context", args[-1] if args else None)
        # A dialect may call its parent's method, which is timed as well: the outer one counts.
        if getattr(context, "root_connection", None) is None or hasattr(context, _MARK):
            return original(dialect, cursor, statement, *args, **kwargs)
        setattr(context, _MARK, True)
        error: BaseException | None = None
        started = perf_counter()
        try:
            return original(dialect, cursor, statement, *args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            seconds = perf_counter() - started
            delattr(context, _MARK)
            try:
                batch = many and len(args[0]) > 1
                timings.operation(seconds, _attributes(dialect, context, statement, error, batch=batch))
            except Exception:  # noqa: BLE001 - hooks never raise into the application
                internal_error("the duration of a statement")

    return execute


def _attributes(
    dialect: Any, context: Any, statement: Any, error: BaseException | None, *, batch: bool
) -> dict[str, str]:
    """Few values each: what is in a statement stays out."""
    found: dict[str, str] = {semconv.DB_SYSTEM_NAME: dialect.name}
    database = context.root_connection.engine.url.database
    if database:
        found[semconv.DB_NAMESPACE] = database
    operation = _operation(context, statement)
    if operation is not None:
        found[semconv.DB_OPERATION_NAME] = f"BATCH {operation}" if batch else operation
    if error is not None:
        found[semconv.ERROR_TYPE] = drivers.sqlstate(error) or type(error).__name__
    return found


def _operation(context: Any, statement: Any) -> str | None:
    if context.isinsert:
        return "INSERT"
    if context.isupdate:
        return "UPDATE"
    if context.isdelete:
        return "DELETE"
    first = _FIRST.match(statement) if isinstance(statement, str) else None
    word = first[1].upper() if first is not None else None
    return word if word in _OPERATIONS else None


class WaitHooks(CheckoutHooks):
    """Times how long engines take to give out a connection: until one is free, or a new one is made."""

    def __init__(self, timings: Timings) -> None:
        super().__init__()
        self._timings = timings

    def _wrap(self, original: Any) -> Any:
        timings = self._timings

        def raw_connection(engine: Any) -> Any:
            started = perf_counter()
            try:
                return original(engine)
            finally:
                seconds = perf_counter() - started
                try:
                    timings.connection_wait(seconds, pool_name(engine))
                except Exception:  # noqa: BLE001 - hooks never raise into the application
                    internal_error("the wait for a connection")

        return raw_connection
