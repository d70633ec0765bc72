"""Statements on their way to the driver: raw transaction control, failures, rows matched.

Not a listener: one frame around the driver's execute, which does nothing while no transaction has captured
anything, and a look at the connection when one has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from otel_activity.capture import autocommit, control, drivers
from otel_activity.capture.control import Verb
from otel_activity.capture.guard import internal_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.capture.bracket import Bracket
    from otel_activity.capture.control import Script, Step
    from otel_activity.capture.transaction import Transaction

__all__ = ["StatementHooks", "global_key"]

_ENDS: Final = frozenset({Verb.COMMIT, Verb.ROLLBACK, Verb.PREPARE})
_PREPARED: Final = frozenset({Verb.COMMIT_PREPARED, Verb.ROLLBACK_PREPARED})


def global_key(connection: Any, gid: Any) -> tuple[Any, ...]:
    """Where a prepared transaction is found again: its id is unique in one server's database only."""
    url = connection.engine.url
    return (url.host, url.port, url.database, str(gid))


class StatementHooks:
    """What the wrapped ``do_execute`` methods do."""

    def __init__(self, bracket: Bracket) -> None:
        self._bracket = bracket

    def wrap_execute(self, original: Any) -> Any:  # noqa: C901 - one frame, around every statement
        bracket = self._bracket
        open_transactions = bracket.open
        many = original.__name__ == "do_executemany"
        proofs = bracket.proofs

        def do_execute(  # noqa: C901 - as above
            dialect: Any, cursor: Any, statement: Any, parameters: Any, context: Any = None
        ) -> Any:
            if context is None:
                return original(dialect, cursor, statement, parameters, context)
            if context.is_text or context.compiled is None:
                return self._text(
                    context, statement, lambda: original(dialect, cursor, statement, parameters, context)
                )
            if not open_transactions:
                return original(dialect, cursor, statement, parameters, context)
            transaction = bracket.find_running(context.root_connection)
            if transaction is None:
                return original(dialect, cursor, statement, parameters, context)
            writes = context.isinsert or context.isupdate or context.isdelete
            try:
                if writes and proofs is not None and proofs.wanted(transaction):
                    result = self._proving(
                        transaction,
                        context,
                        lambda: original(dialect, cursor, statement, parameters, context),
                        alone=many,
                    )
                else:
                    result = original(dialect, cursor, statement, parameters, context)
            except BaseException as error:
                _failed(transaction, error)
                if transaction.announced:
                    self._salvage(transaction, context, parameters, error, many)
                raise
            if writes:
                if transaction.unit is None or transaction.autocommit:  # else it was looked at just before
                    bracket.look(transaction)
                if transaction.announced:
                    autocommit.count(transaction, context, cursor, parameters)
                if context.isdelete:
                    # Only the unit of work brings a cache of its own; hooks of the application delete, too.
                    if context.execution_options.get("compiled_cache") is not None:
                        transaction.matched = _matched(context, cursor, transaction.matched)
                elif transaction.noted is not None and context.isupdate:
                    transaction.noted.note(context)
            return result

        return do_execute

    def wrap_execute_no_params(self, original: Any) -> Any:
        def do_execute_no_params(dialect: Any, cursor: Any, statement: Any, context: Any = None) -> Any:
            if context is None:
                return original(dialect, cursor, statement, context)
            return self._text(context, statement, lambda: original(dialect, cursor, statement, context))

        return do_execute_no_params

    def _proving(
        self, transaction: Transaction, context: Any, send: Callable[[], Any], *, alone: bool
    ) -> Any:
        """The first write of a transaction: its id is read with it, or right after it."""
        proofs = self._bracket.proofs
        raw = context.root_connection.connection.dbapi_connection
        if proofs is None:
            return send()
        if not alone and proofs.can_pipeline(transaction, raw):
            return proofs.execute(transaction, raw, send)
        result = send()
        proofs.read(transaction, raw)
        return result

    def _salvage(
        self, transaction: Transaction, context: Any, parameters: Any, error: BaseException, many: bool
    ) -> None:
        try:
            if _writes(context):
                autocommit.count_failed(transaction, context, parameters, error, many=many)
            if transaction.autocommit:
                self._bracket.salvage(transaction)
        except Exception:  # noqa: BLE001 - the statement's own error is what the application must see
            internal_error("changes of a failed flush")

    # --- texts -------------------------------------------------------------------------------

    def _text(self, context: Any, statement: Any, send: Callable[[], Any]) -> Any:
        bracket = self._bracket
        transaction = bracket.find_for(context.root_connection)
        if transaction is not None:
            if transaction.inside:
                return send()
            bracket.watch(transaction)
        script = control.read(statement) if isinstance(statement, str) else None
        try:
            if script is not None and script.steps:
                return self._script(context, transaction, script, send)
            return send()
        except BaseException as error:
            if transaction is not None:
                _failed(transaction, error)
            raise

    def _script(
        self, context: Any, transaction: Transaction | None, script: Script, send: Callable[[], Any]
    ) -> Any:
        if script.alone:
            return self._control(context, transaction, script.steps[0], send)
        if any(step.verb in _PREPARED for step in script.steps):
            return send()  # PostgreSQL takes these only alone
        if transaction is None or transaction.autocommit:
            result = send()
            self._marks(context, script)
            return result
        return self._several(context, transaction, script, send)

    def _several(
        self, context: Any, transaction: Transaction, script: Script, send: Callable[[], Any]
    ) -> Any:
        """A text of several statements. It reports one error or none: none means that each one succeeded."""
        ends = [index for index, step in enumerate(script.steps) if step.verb in _ENDS]
        if not ends:
            result = send()
            for step in script.steps:
                self._savepoint(context, step)
            return result
        first = script.steps[ends[0]].verb
        before = [step for step in script.steps[: ends[0]] if step.verb is Verb.ROLLBACK_TO]
        if first is Verb.ROLLBACK:
            result = self._bracket.abort(transaction, send)
        elif before or first is Verb.PREPARE:
            # Which entries are committed depends on savepoints that one answer covers.
            result = send()
            self._bracket.split(transaction, "transaction control in a text of several statements")
        else:
            result = self._committing(context, transaction, send)
        self._marks(context, script)
        return result

    def _committing(self, context: Any, transaction: Transaction, send: Callable[[], Any]) -> Any:
        """An error may have come before or after the COMMIT, so no error of a script is certain."""

        def unsure() -> Any:
            try:
                return send()
            except Exception as error:
                raise _ScriptError(error) from error

        try:
            return self._bracket.commit(transaction, unsure, raw=_raw(context))
        except _ScriptError as wrapped:
            raise wrapped.error from wrapped.error.__cause__

    def _marks(self, context: Any, script: Script) -> None:
        """Savepoints that are open after a script which ended a transaction and began another."""
        last = max((index for index, step in enumerate(script.steps) if step.verb in _ENDS), default=-1)
        for step in script.steps[last + 1 :]:
            self._savepoint(context, step)

    def _control(
        self, context: Any, transaction: Transaction | None, step: Step, send: Callable[[], Any]
    ) -> Any:
        bracket, verb = self._bracket, step.verb
        if verb in _PREPARED:
            end = bracket.commit_prepared if verb is Verb.COMMIT_PREPARED else bracket.rollback_prepared
            return end(global_key(context.root_connection, step.name), send)
        if verb in _ENDS:
            if transaction is None:
                return send()
            if verb is Verb.COMMIT:
                return bracket.commit(transaction, send, transaction_undo(context), raw=_raw(context))
            if verb is Verb.ROLLBACK:
                return bracket.abort(transaction, send)
            key = global_key(context.root_connection, step.name)
            return bracket.prepare_twophase(
                transaction, key, send, transaction_undo(context), raw=_raw(context)
            )
        result = send()
        self._savepoint(context, step)
        return result

    def _savepoint(self, context: Any, step: Step) -> None:
        bracket = self._bracket
        if step.verb is Verb.SAVEPOINT:
            bracket.mark(context.root_connection, step.name)
            return
        transaction = bracket.find_for(context.root_connection)
        if transaction is None:
            return
        if step.verb is Verb.RELEASE:
            bracket.released(transaction, step.name)
        elif step.verb is Verb.ROLLBACK_TO:
            transaction.rollback_to(step.name)


class _ScriptError(Exception):
    """Carries a script's error past the rule for a single COMMIT: no SQLSTATE, so nothing is certain."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def transaction_undo(context: Any) -> Callable[[], Any]:
    """Rolls back on the DBAPI connection that a statement runs on."""

    def undo() -> Any:
        return _raw(context).rollback()

    return undo


def _raw(context: Any) -> Any:
    """The DBAPI connection that a statement runs on."""
    return context.root_connection.connection.dbapi_connection


def _matched(context: Any, cursor: Any, before: int | None) -> int | None:
    """Rows that a DELETE matched, and those `before` it in its step; None when the driver does not say."""
    count = getattr(cursor, "rowcount", -1)
    # psycopg2 counts the last row of an executemany, and nothing else.
    counted = context.dialect.supports_sane_multi_rowcount or not context.executemany
    return count + (before or 0) if counted and isinstance(count, int) and count >= 0 else None


def _writes(context: Any) -> bool:
    return bool(context.isinsert or context.isupdate or context.isdelete)


def _failed(transaction: Transaction, error: BaseException) -> None:
    """Remember that the server refused a statement: a PostgreSQL transaction is then in error."""
    if transaction.dialect.name == "postgresql" and drivers.refused_by_server(error):
        transaction.poisoned = True
