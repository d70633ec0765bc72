"""What the unit of work did, row by row: mapper events take a snapshot as each row is written.

Mapper events rather than ``after_flush``: they name the connection, they come when server-generated values
are there, and their order is the order of the statements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.base import LoaderCallableStatus

from otel_activity.capture.change import CREATED, DELETED, UPDATED, Change
from otel_activity.capture.guard import internal_error
from otel_activity.capture.plan import MISSING
from otel_activity.codec import ATOMIC

if TYPE_CHECKING:
    from otel_activity.capture.bracket import Bracket
    from otel_activity.capture.plan import Plan, Planner
    from otel_activity.capture.transaction import Transaction

__all__ = ["MapperHooks"]


class MapperHooks:
    """Listens to every mapper there is and will be."""

    def __init__(self, bracket: Bracket, planner: Planner, *, fetch_before: bool = False) -> None:
        self._bracket = bracket
        self._planner = planner
        self._fetch = fetch_before
        self._listeners: Final = (
            ("before_insert", self._guarded(self._before_insert)),
            ("before_update", self._guarded(self._before_update)),
            ("before_delete", self._guarded(self._before_delete)),
            ("after_insert", self._guarded(self._after_insert)),
            ("after_update", self._guarded(self._after_update)),
            ("after_delete", self._guarded(self._after_delete)),
        )

    def install(self) -> None:
        for name, listener in self._listeners:
            event.listen(Mapper, name, listener, raw=True, retval=True)

    def uninstall(self) -> None:
        for name, listener in self._listeners:
            event.remove(Mapper, name, listener)

    def _guarded(self, hook: Any) -> Any:
        def listener(mapper: Any, connection: Any, state: Any) -> None:
            try:
                hook(mapper, connection, state)
            except Exception:  # noqa: BLE001 - hooks never raise into the application
                internal_error(hook.__name__)

        return listener

    # --- before the statement ----------------------------------------------------------------

    def _before_insert(self, mapper: Any, connection: Any, state: Any) -> None:
        if self._planner.plan(mapper) is not None:
            self._bracket.transaction(connection).batch()

    def _before_update(self, mapper: Any, connection: Any, state: Any) -> None:
        plan = self._planner.plan(mapper)
        if plan is None:
            return
        transaction = self._bracket.transaction(connection)
        transaction.batch()
        if plan.watched:
            dict_ = state.dict
            transaction.held[state] = {
                column.key: dict_[column.key] for column in plan.watched if column.key in dict_
            }
        if self._fetch:
            unknown = [key for key, old in state.committed_state.items() if type(old) is LoaderCallableStatus]
            unknown += [column.key for column in plan.watched if column.key not in state.dict]
            self._hold(transaction, plan, connection, state, unknown)

    def _before_delete(self, mapper: Any, connection: Any, state: Any) -> None:
        plan = self._planner.plan(mapper)
        if plan is None:
            return
        transaction = self._bracket.transaction(connection)
        transaction.batch()
        transaction.matched = None
        if self._fetch:
            known, committed = state.dict, state.committed_state
            unknown = [
                column.key
                for column in plan.columns
                if type(committed.get(column.key, known.get(column.key, MISSING)))
                in (type(MISSING), LoaderCallableStatus)
            ]
            self._hold(transaction, plan, connection, state, unknown)

    def _hold(
        self, transaction: Transaction, plan: Plan, connection: Any, state: Any, keys: list[str]
    ) -> None:
        """Read values that the session does not know, before the statement overwrites them."""
        columns = [plan.by_key[key] for key in keys if key in plan.by_key]
        if not columns or state.key is None:
            return
        mapper = plan.mapper
        table = mapper.selectable
        where = [column == value for column, value in zip(mapper.primary_key, state.key[1], strict=True)]
        row = connection.execute(
            table.select().with_only_columns(*(column.column for column in columns)).where(*where)
        ).first()
        if row is not None:
            held = transaction.held.setdefault(state, {})
            held.update({column.key: value for column, value in zip(columns, row, strict=True)})

    # --- after the statement -----------------------------------------------------------------

    def _after_insert(self, mapper: Any, connection: Any, state: Any) -> None:
        plan = self._planner.plan(mapper)
        if plan is None:
            return
        transaction = self._bracket.transaction(connection)
        dict_ = state.dict
        after: dict[str, Any] = {}
        for column in plan.columns:
            value = dict_.get(column.key, MISSING)
            if type(value) in ATOMIC and not column.secret:
                after[column.name] = value
            elif value is not MISSING:
                kept = column.snapshot(value)
                if kept is not MISSING:
                    after[column.name] = kept
            elif column.null_if_missing:
                after[column.name] = None
        change = Change(
            plan, CREATED, _identity(plan, dict_), {}, after, partial=len(after) < len(plan.columns)
        )
        transaction.add_insert(change)
        if transaction.autocommit:
            self._bracket.settle(transaction)

    def _after_update(self, mapper: Any, connection: Any, state: Any) -> None:
        plan = self._planner.plan(mapper)
        if plan is None:
            return
        transaction = self._bracket.transaction(connection)
        held = transaction.held.pop(state, None) or {}
        if state.key is None:
            # A new object took over the row of one that was deleted in the same flush ("row switch").
            change = self._row_switch(plan, mapper, state)
        else:
            change = self._updated(plan, state, held)
        if change is None:
            return
        transaction.add_update(change)
        if transaction.autocommit:
            self._bracket.settle(transaction)

    def _updated(self, plan: Plan, state: Any, held: dict[str, Any]) -> Change | None:
        """The columns that the UPDATE changed: SQLAlchemy's own rule for what it writes, and what the
        statement changed by itself (version counters, ``onupdate``)."""
        dict_ = state.dict
        by_key = plan.by_key
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        partial = False
        for key, old in state.committed_state.items():
            column = by_key.get(key)
            if column is None:
                continue
            new = dict_.get(key, MISSING)
            if new is not MISSING and column.is_equal(new, old) is True:
                continue
            if type(old) is LoaderCallableStatus:
                old = held.get(key, MISSING)
                if old is not MISSING and new is not MISSING and column.is_equal(new, old) is True:
                    # Written, though unchanged; the row is an update of nothing in this column.
                    continue
            partial |= _record(column, old, new, before, after)
        for column in plan.watched:
            if column.name in before:
                continue
            old = held.get(column.key, MISSING)
            new = dict_.get(column.key, MISSING)
            if old is MISSING and new is MISSING:
                continue
            if old is MISSING or new is MISSING or column.is_equal(new, old) is not True:
                partial |= _record(column, old, new, before, after)
        if not before:
            return None
        return Change(plan, UPDATED, _identity(plan, dict_), before, after, partial=partial)

    def _row_switch(self, plan: Plan, mapper: Any, state: Any) -> Change:
        dict_ = state.dict
        session = state.session
        replaced = (
            session.identity_map.get(mapper.identity_key_from_instance(state.obj())) if session else None
        )
        known = replaced.__dict__ if replaced is not None else {}
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        partial = False
        for key in state.committed_state:
            column = plan.by_key.get(key)
            if column is None or key in plan.pk:
                continue
            old = known.get(key, MISSING)
            new = dict_.get(key, MISSING)
            if old is not MISSING and new is not MISSING and column.is_equal(new, old) is True:
                continue
            partial |= _record(column, old, new, before, after)
        return Change(plan, UPDATED, _identity(plan, dict_), before, after, partial=partial)

    def _after_delete(self, mapper: Any, connection: Any, state: Any) -> None:
        plan = self._planner.plan(mapper)
        if plan is None:
            return
        transaction = self._bracket.transaction(connection)
        held = transaction.held.pop(state, None) or {}
        if transaction.matched == 0:
            # Somebody else deleted the row first; SQLAlchemy only warns.
            return
        dict_ = state.dict
        committed = state.committed_state
        before: dict[str, Any] = {}
        for column in plan.columns:
            value = committed.get(column.key, MISSING)
            if value is MISSING:
                value = dict_.get(column.key, MISSING)
            if value is MISSING or type(value) is LoaderCallableStatus:
                value = held.get(column.key, MISSING)
            if value is not MISSING:
                kept = column.snapshot(value)
                if kept is not MISSING:
                    before[column.name] = kept
        change = Change(plan, DELETED, state.key[1], before, {}, partial=len(before) < len(plan.columns))
        transaction.add(change)
        if transaction.autocommit:
            self._bracket.settle(transaction)


def _record(column: Any, old: Any, new: Any, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Note one changed column; True when a side of it is not known."""
    name = column.name
    kept = old if old is MISSING else column.snapshot(old)
    before[name] = kept
    if new is not MISSING:
        new = column.snapshot(new)
        if new is not MISSING:
            after[name] = new
    return kept is MISSING or name not in after


def _identity(plan: Plan, dict_: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(dict_.get(key) for key in plan.pk)
