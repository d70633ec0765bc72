"""Guards the dialects' own methods: begin, commit, rollback, savepoints, two-phase, close.

Every class that defines one of them is patched, those that are loaded later when they are defined.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import base as pool_base

from otel_activity.capture import drivers
from otel_activity.capture.statements import StatementHooks, global_key
from otel_activity.capture.timing import timed
from otel_activity.errors import ActivityError, DeliveryRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_activity.capture.bracket import Bracket
    from otel_activity.capture.timing import Timings

__all__ = ["DialectHooks"]


class DialectHooks:
    """Wraps dialect classes and the pool's proxy; `uninstall` restores them to the attribute."""

    def __init__(self, bracket: Bracket, timings: Timings | None = None) -> None:
        self._bracket = bracket
        self._timings = timings
        self._statements = StatementHooks(bracket)
        self._patched: list[tuple[type, str, Any, Any]] = []
        self._classes: set[type] = set()
        self._lock = threading.Lock()
        self._installed = False

    # --- installing --------------------------------------------------------------------------

    def install(self) -> None:
        """Guard all dialect classes there are, and those that are defined later."""
        self._installed = True
        self._add(DefaultDialect, "__init_subclass__", self._subclass_hook())
        for cls in _with_subclasses(DefaultDialect):
            self._guard_bases(cls)
        for proxy in (pool_base._ConnDialect, pool_base._AsyncConnDialect):
            self._guard(proxy)
        # The pooled connection hands `commit` through by __getattr__; a method of its own is seen.
        for name in ("commit", "rollback"):
            self._add(pool_base._ConnectionFairy, name, self._fairy_method(name))

    def uninstall(self) -> None:
        """Put back every attribute exactly as it was.

        What somebody else wrapped after us stays in place; our function inside it then only calls on.
        """
        self._installed = False
        for cls, name, original, ours in reversed(self._patched):
            if vars(cls).get(name) is not ours:
                continue
            if original is None:
                delattr(cls, name)
            else:
                setattr(cls, name, original)
        self._patched.clear()
        self._classes.clear()
        self._bracket.clear()

    def _add(self, cls: type, name: str, ours: Any) -> None:
        """Give a class an attribute of its own that it has only inherited so far, if at all."""
        if name not in vars(cls):
            setattr(cls, name, ours)
            self._patched.append((cls, name, None, ours))

    def _patch(self, cls: type, name: str, wrap: Callable[[Any], Any]) -> None:
        original = vars(cls)[name]
        if not callable(original):
            return
        ours = functools.wraps(original)(wrap(original))
        setattr(cls, name, ours)
        self._patched.append((cls, name, original, ours))

    def _guard_bases(self, cls: type) -> None:
        """A dialect's methods may come from mixins that are no dialects themselves."""
        for base in cls.__mro__:
            if base is not object and base is not Dialect and base not in self._classes:
                self._guard(base)

    def _guard(self, cls: type) -> None:
        with self._lock:
            if cls in self._classes:
                return
            self._classes.add(cls)
            for name, wrap in self._wrappers().items():
                if name in vars(cls):
                    self._patch(cls, name, wrap)

    def _wrappers(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "set_connection_execution_options": self._wrap_options,
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
            "do_execute": self._wrap_execute(self._statements.wrap_execute),
            "do_executemany": self._wrap_execute(self._statements.wrap_execute),
            "do_execute_no_params": self._wrap_execute(self._statements.wrap_execute_no_params),
        }

    def _wrap_execute(self, guard: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The guard, and inside it the clock if somebody wants to know."""
        timings = self._timings
        return guard if timings is None else lambda original: guard(timed(original, timings))

    def _subclass_hook(self) -> Any:
        """Sees each dialect class when it is defined.

        Not a wrapped ``__init__``: `create_engine` reads the signatures of those to learn its arguments.
        """

        def __init_subclass__(cls: type[DefaultDialect], /, **kwargs: Any) -> None:
            super(DefaultDialect, cls).__init_subclass__(**kwargs)
            if self._installed:
                self._guard_bases(cls)

        return classmethod(__init_subclass__)

    # --- the guarded methods -----------------------------------------------------------------

    def _wrap_begin(self, original: Any) -> Any:
        open_transactions = self._bracket.open

        def do_begin(dialect: Any, connection: Any) -> Any:
            left = self._bracket.find(connection) if open_transactions else None
            if left is not None and not left.inside:
                self._bracket.begin(left)
            return original(dialect, connection)

        return do_begin

    def _wrap_commit(self, original: Any) -> Any:
        bracket = self._bracket

        def do_commit(dialect: Any, connection: Any) -> Any:
            transaction = bracket.find(connection)
            if transaction is None or transaction.inside or self._sends_nothing(transaction, connection):
                return original(dialect, connection)
            return bracket.commit(
                transaction,
                lambda: original(dialect, connection),
                lambda: dialect.do_rollback(connection),
                raw=getattr(connection, "dbapi_connection", connection),  # it may be the pool's proxy
                joins=True,
            )

        return do_commit

    def _wrap_rollback(self, original: Any) -> Any:
        open_transactions = self._bracket.open

        def do_rollback(dialect: Any, connection: Any) -> Any:
            if not open_transactions:  # nearly always: pools roll back each connection that comes back
                return original(dialect, connection)
            transaction = self._bracket.find(connection)
            if transaction is None or transaction.inside or self._sends_nothing(transaction, connection):
                return original(dialect, connection)
            return self._bracket.abort(transaction, lambda: original(dialect, connection))

        return do_rollback

    @staticmethod
    def _sends_nothing(transaction: Any, connection: Any) -> bool:
        return not transaction.autocommit and drivers.leaves_open(transaction.dialect, connection)

    def _fairy_method(self, name: str) -> Any:
        open_transactions = self._bracket.open

        def method(fairy: Any) -> Any:
            raw = fairy.dbapi_connection
            send = getattr(raw, name)
            known = open_transactions.get(id(raw))
            if known is None or known.inside:
                return send()
            transaction = self._bracket.find(fairy)
            if transaction is None or transaction.inside or self._sends_nothing(transaction, fairy):
                return send()
            if name == "commit":
                return self._bracket.commit(transaction, send, raw.rollback, raw=raw, joins=True)
            return self._bracket.abort(transaction, send)

        method.__name__ = name
        return method

    def _wrap_close(self, original: Any) -> Any:
        def do_close(dialect: Any, connection: Any) -> Any:
            transaction = self._bracket.find(connection)
            if transaction is None or transaction.inside:
                return original(dialect, connection)
            return self._bracket.abort(transaction, lambda: original(dialect, connection))

        return do_close

    def _wrap_savepoint(self, original: Any) -> Any:
        def do_savepoint(dialect: Any, connection: Any, name: str) -> Any:
            result = original(dialect, connection, name)
            if self._installed:
                self._bracket.mark(connection, name)
            return result

        return do_savepoint

    def _wrap_rollback_to_savepoint(self, original: Any) -> Any:
        def do_rollback_to_savepoint(dialect: Any, connection: Any, name: str) -> Any:
            transaction = self._bracket.find_for(connection)
            if transaction is not None and transaction.autocommit:
                self._bracket.settle(transaction)
            result = original(dialect, connection, name)
            if transaction is not None:
                transaction.rollback_to(name)
            return result

        return do_rollback_to_savepoint

    def _wrap_release_savepoint(self, original: Any) -> Any:
        def do_release_savepoint(dialect: Any, connection: Any, name: str) -> Any:
            result = original(dialect, connection, name)
            transaction = self._bracket.find_for(connection)
            if transaction is not None:
                self._bracket.released(transaction, name)
            return result

        return do_release_savepoint

    def _wrap_options(self, original: Any) -> Any:
        def set_connection_execution_options(dialect: Any, connection: Any, opts: Any) -> Any:
            result = original(dialect, connection, opts)
            if "schema_translate_map" in opts:
                transaction = self._bracket.find_for(connection)
                if transaction is not None:
                    transaction.schemas = opts["schema_translate_map"]
            return result

        return set_connection_execution_options

    # --- two-phase ---------------------------------------------------------------------------

    def _wrap_prepare_twophase(self, original: Any) -> Any:
        def do_prepare_twophase(dialect: Any, connection: Any, xid: Any) -> Any:
            transaction = self._bracket.find_for(connection)
            if transaction is None or transaction.inside:
                return original(dialect, connection, xid)
            key = global_key(connection, xid)
            try:
                return self._bracket.prepare_twophase(
                    transaction,
                    key,
                    lambda: original(dialect, connection, xid),
                    lambda: dialect.do_rollback_twophase(connection, xid, False),
                    raw=connection.connection,
                )
            except ActivityError:
                self._bracket.remember_refused(key)
                raise

        return do_prepare_twophase

    def _wrap_commit_twophase(self, original: Any) -> Any:
        def do_commit_twophase(
            dialect: Any, connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False
        ) -> Any:
            def send() -> Any:
                return original(dialect, connection, xid, is_prepared, recover)

            if is_prepared:
                return self._bracket.commit_prepared(global_key(connection, xid), send)
            if self._was_refused(connection, xid):
                raise DeliveryRefused("not committed, because its events were refused when it was prepared")
            transaction = self._bracket.find_for(connection)
            if transaction is None or transaction.inside:
                return send()
            return self._bracket.commit(
                transaction,
                send,
                lambda: dialect.do_rollback_twophase(connection, xid, False),
                raw=connection.connection,
            )

        return do_commit_twophase

    def _wrap_rollback_twophase(self, original: Any) -> Any:
        def do_rollback_twophase(
            dialect: Any, connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False
        ) -> Any:
            def send() -> Any:
                return original(dialect, connection, xid, is_prepared, recover)

            transaction = self._bracket.find_for(connection)
            if transaction is not None and not transaction.inside and not is_prepared:
                return self._bracket.abort(transaction, send)
            if not is_prepared and self._was_refused(connection, xid):
                return None
            return self._bracket.rollback_prepared(global_key(connection, xid), send)

        return do_rollback_twophase

    def _was_refused(self, connection: Any, xid: Any) -> bool:
        """Whether a two-phase transaction was rolled back already, when it was to be prepared."""
        driver = connection.connection.driver_connection
        return self._bracket.was_refused(global_key(connection, xid), driver)


def _with_subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    yield cls
    sub: type[Any]
    for sub in cls.__subclasses__():
        yield from _with_subclasses(sub)
