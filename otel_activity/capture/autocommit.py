"""A flush that fails under AUTOCOMMIT: the statements before the failing one were committed one by one.

SQLAlchemy reports a flush step's rows only when all its statements have run, so the rows of a step that
fails half-way are never reported. Under AUTOCOMMIT, and only there, the step's objects are remembered when
they are announced, and the rows that each statement matched are counted: both go in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from otel_activity.capture import drivers
from otel_activity.capture.guard import internal_error
from otel_activity.events import Unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.capture.transaction import Transaction

__all__ = ["Announced", "count", "count_failed", "reported", "salvage"]


class Announced(NamedTuple):
    """An object whose row is about to be written.

    Attributes:
        verb: ``insert``, ``update`` or ``delete``.
        report: the hook that would be called after the step.
        arguments: its arguments: mapper, connection and instance state.
    """

    verb: str
    report: Callable[..., None]
    arguments: tuple[Any, Any, Any]


def _verb(context: Any) -> str:
    if context.isinsert:
        return "insert"
    return "update" if context.isupdate else "delete"


def _note(transaction: Transaction, context: Any, outcomes: list[bool | None]) -> None:
    compiled = context.compiled
    table = getattr(getattr(compiled, "compile_state", None), "dml_table", None)
    if table is not None:
        transaction.written.setdefault((table, _verb(context)), []).extend(outcomes)


def count(transaction: Transaction, context: Any, cursor: Any, parameters: Any) -> None:
    """A statement succeeded: whether each of its rows was written, as far as the row count tells."""
    sent = _rows(context, parameters)
    matched = getattr(cursor, "rowcount", -1)
    if not isinstance(matched, int) or matched < 0 or matched == sent:
        _note(transaction, context, [True] * sent)
    elif context.isinsert:
        # One batch of an INSERT of many rows: the context knows all of them, the cursor this batch's.
        _note(transaction, context, [True] * matched)
    else:
        _note(transaction, context, [False if matched == 0 else None] * sent)


def count_failed(
    transaction: Transaction, context: Any, parameters: Any, error: BaseException, *, many: bool
) -> None:
    """A statement failed. Nobody knows about its rows when the connection was lost with the answer, or
    when the driver sends the rows one by one."""
    one_by_one = many and transaction.dialect.driver not in ("psycopg", "asyncpg")
    # The server's last words are read before the end of the connection is: it may look open still.
    last_words = drivers.sqlstate(error) is not None and not drivers.certainly_aborted(error)
    if one_by_one or last_words or drivers.is_lost(transaction.driver(), transaction.dialect, error):
        _note(transaction, context, [None] * _rows(context, parameters))


def _rows(context: Any, parameters: Any) -> int:
    return len(parameters) if context.executemany and isinstance(parameters, list) else 1


def reported(transaction: Transaction, verb: str, state: Any, *, sent: bool) -> None:
    """An announced object was reported: what is still announced are those after it.

    They are reported next, unless a hook of the application raises in between.

    Args:
        transaction: in which it was written.
        verb: what was done to its row.
        state: of the object.
        sent: whether there was a statement for it.
    """
    announced = transaction.announced
    for index, one in enumerate(announced):
        if one.arguments[2] is state:
            del announced[index]
            if sent:
                _outcome(one._replace(verb=verb), transaction.written)
            break
    if not announced:
        transaction.written.clear()


def salvage(transaction: Transaction) -> tuple[Unit | None, Unit | None]:
    """What a failed step wrote nevertheless.

    Returns:
        Units of the changes that were certainly committed, and of those that nobody knows about.
    """
    announced, transaction.announced = transaction.announced, []
    written, transaction.written = transaction.written, {}
    if not written:
        return None, None
    kept = transaction.unit
    sure, unsure = _unit(transaction), _unit(transaction)
    transaction.autocommit = False  # the hooks are to collect only
    try:
        for one in announced:
            _sort_out(transaction, one, written, sure, unsure)
    finally:
        transaction.autocommit = True
        transaction.close_batch()
        transaction.unit = kept
    return (sure if sure.entries else None), (unsure if unsure.entries else None)


def _unit(transaction: Transaction) -> Unit:
    transaction.unit = None
    unit = transaction.opened()
    transaction.unit = None
    return unit


def _sort_out(
    transaction: Transaction,
    one: Announced,
    written: dict[tuple[Any, str], list[bool | None]],
    sure: Unit,
    unsure: Unit,
) -> None:
    transaction.close_batch()
    found = transaction.unit = Unit("", system="", database="")
    try:
        one.report(*one.arguments)
    except Exception:  # noqa: BLE001 - hooks never raise into the application
        internal_error("changes of a failed flush")
    if not found.entries:
        return  # nothing to write, so no statement was sent for it
    outcome = _outcome(one, written)
    if outcome is not False:
        (sure if outcome else unsure).entries += found.entries


def _outcome(one: Announced, written: dict[tuple[Any, str], list[bool | None]]) -> bool | None:
    tables = list(one.arguments[0].tables)
    rows = [written[table, one.verb].pop(0) for table in tables if written.get((table, one.verb))]
    if not rows or rows == [False]:
        return False
    if len(rows) == len(tables) and all(rows) and (len(tables) == 1 or one.verb == "insert"):
        return True
    return None  # an entity in several tables, of which some were written
