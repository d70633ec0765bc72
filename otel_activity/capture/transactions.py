"""The transaction bracket: which captured changes were committed, decided where COMMIT is sent.

Session events lie about commits (a released savepoint fires ``after_commit``; a transaction in error
commits nothing and says nothing), so units belong to a (DBAPI connection, transaction) pair, and the
bracket guards the dialect's own methods: begin, commit, rollback, savepoints, two-phase, close. Raw
transaction control (``text("ROLLBACK")``, a commit on the pooled DBAPI connection) is seen as well.
"""

from __future__ import annotations

import functools
import re
import weakref
from typing import TYPE_CHECKING, Any, Final

import uuid_utils
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import base as pool_base

from otel_activity.capture import drivers
from otel_activity.capture.guard import internal_error
from otel_activity.errors import ActivityError
from otel_activity.events import Commit, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_activity.events import Entry
    from otel_activity.ports import Delivery

__all__ = ["Bracket", "Transaction"]

_CONTROL: Final = re.compile(
    r"\s*(?:--[^\n]*\n\s*|/\*.*?\*/\s*)*"
    r"(?P<verb>BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION)\b"
    r"(?:\s+(?:WORK|TRANSACTION))?"
    r"(?P<rest>[^;]*)",
    re.IGNORECASE | re.DOTALL,
)
_CONTROL_INSIDE: Final = re.compile(r";\s*(?:COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b", re.IGNORECASE)
_SAVEPOINT_NAME: Final = re.compile(r"(?:TO\s+)?(?:SAVEPOINT\s+)?\"?(?P<name>[^\s\";]+)\"?", re.IGNORECASE)
_GID: Final = re.compile(r"PREPARED\s+'(?P<gid>[^']*)'", re.IGNORECASE)


class Transaction:
    """What the bracket knows of one DBAPI connection's open transaction."""

    __slots__ = (
        "autocommit",
        "database",
        "dialect",
        "entries",
        "held",
        "inserts",
        "inside",
        "matched",
        "poisoned",
        "raw",
        "savepoints",
        "start",
        "unit",
        "updates",
    )

    def __init__(self, raw: Any, dialect: Any, database: str, *, autocommit: bool) -> None:
        self.raw: Callable[[], Any] = raw
        self.dialect = dialect
        self.database = database
        self.autocommit = autocommit
        self.unit: Unit | None = None
        self.inside = False
        """A guarded method of this connection is running: what it calls in turn is its own business."""
        self.poisoned = False
        """A statement failed on the server, which aborts a PostgreSQL transaction until a savepoint."""
        self.savepoints: list[tuple[str, int, bool]] = []
        self.held: dict[Any, dict[str, Any]] = {}
        """Values read before a statement changes them, by instance state, until its after-event."""
        self.matched: int | None = None
        """Rows that the last DELETE matched; None when the driver does not say."""
        self.start = -1
        """Where in the unit the current batch of one flush step begins; -1 between batches."""
        self.updates = 0
        self.inserts = 0

    def opened(self) -> Unit:
        unit = self.unit
        if unit is None:
            unit = self.unit = Unit(str(uuid_utils.uuid7()), system=self.dialect.name, database=self.database)
        return unit

    # One step of a flush (SQLAlchemy's `save_obj`) announces all its objects, runs the UPDATEs, then the
    # INSERTs, and then reports the inserted objects before the updated ones. Entries go in statement order.

    def batch(self) -> None:
        """An object was announced: if the previous step has reported, a new one begins."""
        if self.inserts or self.updates:
            self.close_batch()

    def close_batch(self) -> None:
        self.start = -1
        self.updates = self.inserts = 0

    def add_insert(self, entry: Entry) -> None:
        entries = self.opened().entries
        if self.start < 0:
            self.start = len(entries)
        entries.append(entry)
        self.inserts += 1

    def add_update(self, entry: Entry) -> None:
        entries = self.opened().entries
        if self.start < 0:
            self.start = len(entries)
        if self.inserts:
            entries.insert(self.start + self.updates, entry)
        else:
            entries.append(entry)
        self.updates += 1

    def add(self, entry: Entry) -> None:
        self.close_batch()
        self.opened().entries.append(entry)

    def mark(self, name: str) -> None:
        self.close_batch()
        self.savepoints.append((name, len(self.unit) if self.unit else 0, self.poisoned))

    def _find(self, name: str) -> int:
        for index in range(len(self.savepoints) - 1, -1, -1):
            if self.savepoints[index][0] == name:
                return index
        return -1

    def rollback_to(self, name: str) -> None:
        """Take away what came after the savepoint; the savepoint itself stays, as in SQL."""
        self.close_batch()
        self.held.clear()
        index = self._find(name)
        if index < 0:
            return
        _, position, self.poisoned = self.savepoints[index]
        if self.unit is not None:
            del self.unit.entries[position:]
        del self.savepoints[index + 1 :]

    def release(self, name: str) -> None:
        self.close_batch()
        index = self._find(name)
        if index >= 0:
            del self.savepoints[index:]


class Bracket:
    """Guards every dialect class and hands finished units to a `Delivery`."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self._open: dict[int, Transaction] = {}
        self._prepared: dict[str, Unit] = {}
        self._patched: list[tuple[type, str, Any]] = []
        self._classes: set[type] = set()

    # --- installing --------------------------------------------------------------------------

    def install(self) -> None:
        """Guard all dialect classes there are, and those that are loaded later, when first built."""
        self._patch(DefaultDialect, "__init__", self._wrap_init)
        for cls in _with_subclasses(DefaultDialect):
            self._guard(cls)
        for proxy in (pool_base._ConnDialect, pool_base._AsyncConnDialect):
            self._guard(proxy)
        # The pooled connection hands `commit` through by __getattr__; a method of its own is seen.
        for name in ("commit", "rollback"):
            setattr(pool_base._ConnectionFairy, name, self._fairy_method(name))

    def uninstall(self) -> None:
        """Put back every attribute exactly as it was; open transactions end unrecorded."""
        for cls, name, original in reversed(self._patched):
            setattr(cls, name, original)
        for name in ("commit", "rollback"):
            if name in vars(pool_base._ConnectionFairy):
                delattr(pool_base._ConnectionFairy, name)
        self._patched.clear()
        self._classes.clear()
        self._open.clear()
        self._prepared.clear()

    def after_fork(self) -> None:
        """In a forked child: the parent's transactions are the parent's to report."""
        self._open.clear()
        self._prepared.clear()

    def _patch(self, cls: type, name: str, wrap: Callable[[Any], Any]) -> None:
        original = vars(cls)[name]
        if not callable(original):
            return
        setattr(cls, name, functools.wraps(original)(wrap(original)))
        self._patched.append((cls, name, original))

    def _guard(self, cls: type) -> None:
        if cls in self._classes:
            return
        self._classes.add(cls)
        for name, wrap in self._wrappers().items():
            if name in vars(cls):
                self._patch(cls, name, wrap)

    def _wrappers(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "do_begin": self._wrap_begin,
            "do_commit": self._wrap_commit,
            "do_rollback": self._wrap_rollback,
            "do_close": self._wrap_close,
            "do_terminate": self._wrap_close,
            "do_savepoint": self._wrap_savepoint,
            "do_rollback_to_savepoint": self._wrap_rollback_to_savepoint,
            "do_release_savepoint": self._wrap_release_savepoint,
            "do_prepare_twophase": self._wrap_prepare_twophase,
            "do_commit_twophase": self._wrap_commit_twophase,
            "do_rollback_twophase": self._wrap_rollback_twophase,
            "do_execute": self._wrap_execute,
            "do_executemany": self._wrap_execute,
            "do_execute_no_params": self._wrap_execute_no_params,
        }

    def _wrap_init(self, original: Any) -> Any:
        guard = self._guard

        def __init__(dialect: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - takes that method's place
            for cls in type(dialect).__mro__:
                if cls is not object and issubclass(cls, DefaultDialect):
                    guard(cls)
            original(dialect, *args, **kwargs)

        return __init__

    # --- finding the transaction -------------------------------------------------------------

    def transaction(self, connection: Any) -> Transaction:
        """The open transaction of an SQLAlchemy `Connection`, opened here if this is its first change."""
        fairy = connection.connection
        raw = fairy.dbapi_connection
        found = self._open.get(id(raw))
        if found is not None and found.raw() is raw:
            return found
        return self._adopt(raw, connection, fairy)

    def _adopt(self, raw: Any, connection: Any, fairy: Any) -> Transaction:
        dialect = connection.dialect
        key = id(raw)
        try:
            reference: Callable[[], Any] = weakref.ref(raw, lambda _: self._open.pop(key, None))
        except TypeError:
            # Adapted async connections cannot be referenced weakly; held until the transaction ends.
            def reference() -> Any:
                return raw

        transaction = Transaction(
            reference,
            dialect,
            connection.engine.url.database or "",
            autocommit=drivers.is_autocommit(dialect, fairy),
        )
        self._open[key] = transaction
        return transaction

    def _find(self, connection: Any) -> Transaction | None:
        """The open transaction of a pooled or raw DBAPI connection, if it has captured anything."""
        raw = getattr(connection, "dbapi_connection", connection)
        found = self._open.get(id(raw))
        return found if found is not None and found.raw() is raw else None

    def _find_for(self, connection: Any) -> Transaction | None:
        """As `_find`, for an SQLAlchemy `Connection`."""
        try:
            return self._find(connection.connection)
        except Exception:  # noqa: BLE001 - an invalidated connection has no transaction
            return None

    def _forget(self, transaction: Transaction) -> None:
        self._open.pop(id(transaction.raw()), None)
        transaction.unit = None
        transaction.savepoints.clear()
        transaction.held.clear()

    # --- handing over ------------------------------------------------------------------------

    def _deliver(self, method: Callable[..., None], unit: Unit, *args: Any) -> None:
        try:
            method(unit, *args)
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error(f"delivery ({getattr(method, '__name__', method)})")

    def _prepare(self, unit: Unit) -> None:
        """Freeze and prepare; only a refusal that the user asked for gets out."""
        try:
            _freeze(unit)
            self.delivery.prepare(unit)
        except ActivityError:
            raise
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error("prepare")

    def settle(self, transaction: Transaction) -> None:
        """Under AUTOCOMMIT each statement was committed as it ran: release what is there."""
        transaction.close_batch()
        unit, transaction.unit = transaction.unit, None
        if unit is not None and unit.entries:
            self._release_unprepared(unit)

    def _release_unprepared(self, unit: Unit) -> None:
        try:
            self._prepare(unit)
        except ActivityError:
            internal_error("prepare after the fact")
        unit.commit = Commit.REPORTED
        self._deliver(self.delivery.committed, unit)

    def _commit(self, transaction: Transaction, send: Callable[[], Any]) -> Any:
        """Bracket one COMMIT."""
        transaction.close_batch()
        unit = transaction.unit
        if transaction.autocommit:
            self.settle(transaction)
            self._forget(transaction)
            return send()
        if unit is None or not unit.entries:
            self._forget(transaction)
            return send()
        state = drivers.transaction_state(transaction)
        if state is drivers.State.FAILED:
            # The server answers COMMIT with ROLLBACK and no error: nothing is committed.
            return self._abort(transaction, send)
        self._prepare(unit)
        transaction.inside = True
        try:
            result = send()
        except BaseException as error:
            self._commit_failed(transaction, unit, error)
            raise
        finally:
            transaction.inside = False
        self._forget(transaction)
        if state is drivers.State.ENDED:
            self._undecided(unit, "ended outside SQLAlchemy")
        else:
            unit.commit = Commit.REPORTED
            self._deliver(self.delivery.committed, unit)
        return result

    def _commit_failed(self, transaction: Transaction, unit: Unit, error: BaseException) -> None:
        self._forget(transaction)
        if drivers.certainly_aborted(error):
            self._deliver(self.delivery.aborted, unit)
        else:
            self._undecided(unit, type(error).__name__, error)

    def _undecided(self, unit: Unit, why: str, error: BaseException | None = None) -> None:
        unit.commit = Commit.UNKNOWN
        unit.error = why
        self._deliver(self.delivery.undecided, unit, error)

    def _abort(self, transaction: Transaction, send: Callable[[], Any]) -> Any:
        """Bracket one ROLLBACK. A rollback that fails (connection lost) is still a rollback."""
        transaction.close_batch()
        if transaction.autocommit:
            self.settle(transaction)
            self._forget(transaction)
            return send()
        unit = transaction.unit
        ended = unit is not None and drivers.transaction_state(transaction) is drivers.State.ENDED
        transaction.inside = True
        try:
            return send()
        finally:
            transaction.inside = False
            self._forget(transaction)
            if unit is not None and unit.entries:
                if ended:
                    # Somebody ended the transaction on the driver's connection: commit or rollback, unseen.
                    _freeze(unit)
                    self._undecided(unit, "ended outside SQLAlchemy")
                else:
                    self._deliver(self.delivery.aborted, unit)

    # --- the guarded methods -----------------------------------------------------------------

    def _wrap_begin(self, original: Any) -> Any:
        def do_begin(dialect: Any, connection: Any) -> Any:
            left = self._find(connection)
            if left is not None and not left.inside:
                self._forget(left)
            return original(dialect, connection)

        return do_begin

    def _wrap_commit(self, original: Any) -> Any:
        def do_commit(dialect: Any, connection: Any) -> Any:
            transaction = self._find(connection)
            if transaction is None or transaction.inside:
                return original(dialect, connection)
            return self._commit(transaction, lambda: original(dialect, connection))

        return do_commit

    def _wrap_rollback(self, original: Any) -> Any:
        def do_rollback(dialect: Any, connection: Any) -> Any:
            transaction = self._find(connection)
            if transaction is None or transaction.inside:
                return original(dialect, connection)
            return self._abort(transaction, lambda: original(dialect, connection))

        return do_rollback

    def _fairy_method(self, name: str) -> Any:
        bracket = self._commit if name == "commit" else self._abort

        def method(fairy: Any) -> Any:
            send = getattr(fairy.dbapi_connection, name)
            transaction = self._find(fairy)
            if transaction is None or transaction.inside:
                return send()
            return bracket(transaction, send)

        method.__name__ = name
        return method

    def _wrap_close(self, original: Any) -> Any:
        def do_close(dialect: Any, connection: Any) -> Any:
            transaction = self._find(connection)
            if transaction is None or transaction.inside:
                return original(dialect, connection)
            return self._abort(transaction, lambda: original(dialect, connection))

        return do_close

    def _wrap_savepoint(self, original: Any) -> Any:
        def do_savepoint(dialect: Any, connection: Any, name: str) -> Any:
            result = original(dialect, connection, name)
            self.transaction(connection).mark(name)
            return result

        return do_savepoint

    def _wrap_rollback_to_savepoint(self, original: Any) -> Any:
        def do_rollback_to_savepoint(dialect: Any, connection: Any, name: str) -> Any:
            transaction = self._find_for(connection)
            if transaction is None:
                return original(dialect, connection, name)
            if transaction.autocommit:
                self.settle(transaction)
            result = original(dialect, connection, name)
            transaction.rollback_to(name)
            return result

        return do_rollback_to_savepoint

    def _wrap_release_savepoint(self, original: Any) -> Any:
        def do_release_savepoint(dialect: Any, connection: Any, name: str) -> Any:
            result = original(dialect, connection, name)
            transaction = self._find_for(connection)
            if transaction is not None:
                transaction.release(name)
            return result

        return do_release_savepoint

    def _wrap_prepare_twophase(self, original: Any) -> Any:
        def do_prepare_twophase(dialect: Any, connection: Any, xid: Any) -> Any:
            transaction = self._find_for(connection)
            if transaction is None or transaction.inside or not transaction.unit:
                return original(dialect, connection, xid)
            return self._prepare_twophase(transaction, xid, lambda: original(dialect, connection, xid))

        return do_prepare_twophase

    def _prepare_twophase(self, transaction: Transaction, xid: Any, send: Callable[[], Any]) -> Any:
        transaction.close_batch()
        unit = transaction.unit
        assert unit is not None
        if drivers.transaction_state(transaction) is drivers.State.FAILED:
            return self._abort(transaction, send)
        self._prepare(unit)
        transaction.inside = True
        try:
            result = send()
        except BaseException as error:
            self._commit_failed(transaction, unit, error)
            raise
        finally:
            transaction.inside = False
        self._forget(transaction)
        self._prepared[str(xid)] = unit
        return result

    def _wrap_commit_twophase(self, original: Any) -> Any:
        def do_commit_twophase(
            dialect: Any, connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False
        ) -> Any:
            def send() -> Any:
                return original(dialect, connection, xid, is_prepared, recover)

            transaction = self._find_for(connection)
            if not is_prepared:
                if transaction is None or transaction.inside:
                    return send()
                return self._commit(transaction, send)
            return self._commit_prepared(str(xid), send)

        return do_commit_twophase

    def _commit_prepared(self, xid: str, send: Callable[[], Any]) -> Any:
        unit = self._prepared.get(xid)
        if unit is None:
            return send()
        try:
            result = send()
        except Exception as error:
            if not drivers.certainly_aborted(error):
                self._prepared.pop(xid, None)
                self._undecided(unit, type(error).__name__, error)
            # A definite refusal leaves the transaction prepared on the server: its end is still to come.
            raise
        except BaseException as error:
            self._prepared.pop(xid, None)
            self._undecided(unit, type(error).__name__, error)
            raise
        self._prepared.pop(xid, None)
        unit.commit = Commit.REPORTED
        self._deliver(self.delivery.committed, unit)
        return result

    def _wrap_rollback_twophase(self, original: Any) -> Any:
        def do_rollback_twophase(
            dialect: Any, connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False
        ) -> Any:
            def send() -> Any:
                return original(dialect, connection, xid, is_prepared, recover)

            transaction = self._find_for(connection)
            if transaction is not None and not transaction.inside and not is_prepared:
                return self._abort(transaction, send)
            return self._rollback_prepared(str(xid), send)

        return do_rollback_twophase

    def _rollback_prepared(self, xid: str, send: Callable[[], Any]) -> Any:
        result = send()
        unit = self._prepared.pop(xid, None)
        if unit is not None:
            self._deliver(self.delivery.aborted, unit)
        return result

    # --- statements --------------------------------------------------------------------------
    # Not a listener: one frame around the driver's execute, and a look at one attribute.

    def _wrap_execute(self, original: Any) -> Any:
        def do_execute(
            dialect: Any, cursor: Any, statement: Any, parameters: Any, context: Any = None
        ) -> Any:
            if context is not None and (context.is_text or context.compiled is None):
                return self._text(
                    context, statement, lambda: original(dialect, cursor, statement, parameters, context)
                )
            try:
                result = original(dialect, cursor, statement, parameters, context)
            except BaseException as error:
                self._failed(context, error)
                raise
            if context is not None and context.isdelete:
                self._deleted(context, cursor)
            return result

        return do_execute

    def _wrap_execute_no_params(self, original: Any) -> Any:
        def do_execute_no_params(dialect: Any, cursor: Any, statement: Any, context: Any = None) -> Any:
            return self._text(context, statement, lambda: original(dialect, cursor, statement, context))

        return do_execute_no_params

    def _failed(self, context: Any, error: BaseException) -> None:
        """Remember that the server refused a statement: a PostgreSQL transaction is then in error."""
        transaction = self._of(context)
        if transaction is not None and drivers.sqlstate(error) is not None:
            transaction.poisoned = transaction.dialect.name == "postgresql"

    def _deleted(self, context: Any, cursor: Any) -> None:
        transaction = self._of(context)
        if transaction is not None:
            count = getattr(cursor, "rowcount", -1)
            transaction.matched = count if isinstance(count, int) and count >= 0 else None

    def _of(self, context: Any) -> Transaction | None:
        return None if context is None else self._find_for(context.root_connection)

    def _text(self, context: Any, statement: Any, send: Callable[[], Any]) -> Any:
        transaction = self._of(context)
        if transaction is not None and transaction.inside:
            return send()
        match = _CONTROL.match(statement) if isinstance(statement, str) else None
        try:
            if match is not None:
                return self._control(context, transaction, match, send)
            result = send()
        except BaseException as error:
            self._failed(context, error)
            raise
        if transaction is not None and _CONTROL_INSIDE.search(statement):
            self._ended_unseen(transaction)
        return result

    def _ended_unseen(self, transaction: Transaction) -> None:
        """One text with several statements, one of them transaction control: nobody can tell them apart."""
        unit = transaction.unit
        self._forget(transaction)
        if unit is not None and unit.entries:
            _freeze(unit)
            self._undecided(unit, "transaction control in a text of several statements")

    def _control(
        self, context: Any, transaction: Transaction | None, match: re.Match[str], send: Callable[[], Any]
    ) -> Any:
        verb = " ".join(match["verb"].upper().split())
        rest = match["rest"]
        prepared = _GID.search(rest)
        if prepared is not None and verb in {"COMMIT", "ROLLBACK"}:
            end = self._commit_prepared if verb == "COMMIT" else self._rollback_prepared
            return end(prepared["gid"], send)
        if verb == "SAVEPOINT":
            return self._raw_savepoint(context, rest, send)
        if transaction is None or verb in {"BEGIN", "START"}:
            return send()
        if verb in {"COMMIT", "END"}:
            return self._commit(transaction, send)
        if verb == "PREPARE TRANSACTION":
            gid = rest.strip().strip("'")
            return self._prepare_twophase(transaction, gid, send) if transaction.unit else send()
        if verb == "RELEASE" or re.match(r"\s*TO\b", rest, re.IGNORECASE):
            return self._raw_savepoint_end(transaction, verb, rest, send)
        return self._abort(transaction, send)

    def _raw_savepoint(self, context: Any, rest: str, send: Callable[[], Any]) -> Any:
        result = send()
        name = _SAVEPOINT_NAME.match(rest.strip())
        if name is not None:
            self.transaction(context.root_connection).mark(name["name"])
        return result

    def _raw_savepoint_end(
        self, transaction: Transaction, verb: str, rest: str, send: Callable[[], Any]
    ) -> Any:
        result = send()
        name = _SAVEPOINT_NAME.match(rest.strip())
        if name is not None:
            end = transaction.release if verb == "RELEASE" else transaction.rollback_to
            end(name["name"])
        return result


def _freeze(unit: Unit) -> None:
    """Read each change's request context now, just before COMMIT: late authentication counts."""
    context: Any = None
    frozen: dict[str, Any] | None = None
    for entry in unit.entries:
        found = entry.context
        if found is not context:
            context = found
            frozen = None if found is None else found.snapshot()
        entry.attributes = frozen
        entry.context = None


def _with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _with_subclasses(sub)
