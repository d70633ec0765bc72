"""Two places of SQLAlchemy's unit of work that have no public event: many-to-many rows and post-update.

Both write rows that no mapper event announces, so their functions are wrapped, by name, and only here.
`problems` says whether the installed SQLAlchemy still has them; the tests prove it for 2.0 and 2.1.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import attributes, dependency, persistence

from otel_activity.capture.change import CREATED, DELETED, UPDATED, Change
from otel_activity.capture.guard import internal_error
from otel_activity.capture.plan import MISSING

if TYPE_CHECKING:
    from otel_activity.capture.bracket import Bracket
    from otel_activity.capture.plan import Planner, SecondaryPlan
    from otel_activity.capture.transaction import Transaction

__all__ = ["InternalHooks", "problems"]

# SQLAlchemy 2.1 put an underscore before these names of 2.0.
_MANY_TO_MANY: Final = getattr(dependency, "_ManyToManyDP", None) or getattr(dependency, "ManyToManyDP", None)
_POST_UPDATE: Final = next(
    (name for name in ("_post_update", "post_update") if hasattr(persistence, name)), None
)
_RUN_CRUD: Final = "_run_crud"


def problems() -> list[str]:
    """What the installed SQLAlchemy lacks; each entry names what would not be captured."""
    found = []
    if _MANY_TO_MANY is None or _RUN_CRUD not in vars(_MANY_TO_MANY):
        found.append(
            "this SQLAlchemy has no ManyToManyDP._run_crud: rows of secondary tables are not captured"
        )
    if _POST_UPDATE is None:
        found.append("this SQLAlchemy has no persistence.post_update: post_update columns are not captured")
    return found


class InternalHooks:
    """Wraps the two functions."""

    def __init__(self, bracket: Bracket, planner: Planner) -> None:
        self._bracket = bracket
        self._planner = planner
        self._patched: list[tuple[Any, str, Any]] = []

    def install(self) -> None:
        if _MANY_TO_MANY is not None and _RUN_CRUD in vars(_MANY_TO_MANY):
            self._patch(_MANY_TO_MANY, _RUN_CRUD, self._wrap_run_crud)
        if _POST_UPDATE is not None:
            self._patch(persistence, _POST_UPDATE, self._wrap_post_update)

    def uninstall(self) -> None:
        for owner, name, original in reversed(self._patched):
            setattr(owner, name, original)
        self._patched.clear()

    def _patch(self, owner: Any, name: str, wrap: Any) -> None:
        original = vars(owner)[name]
        setattr(owner, name, functools.wraps(original)(wrap(original)))
        self._patched.append((owner, name, original))

    # --- many-to-many ------------------------------------------------------------------------

    def _wrap_run_crud(self, original: Any) -> Any:
        def _run_crud(dependency: Any, uow: Any, insert: Any, update: Any, delete: Any) -> Any:
            result = original(dependency, uow, insert, update, delete)
            if insert or update or delete:
                try:
                    self._secondary_rows(dependency, uow, insert, update, delete)
                except Exception:  # noqa: BLE001 - hooks never raise into the application
                    internal_error("many-to-many rows")
            return result

        return _run_crud

    def _secondary_rows(self, dependency: Any, uow: Any, insert: Any, update: Any, delete: Any) -> None:
        plan = self._planner.secondary(dependency.secondary)
        if plan is None:
            return
        connection = uow.transaction.connection(dependency.mapper)
        transaction = self._bracket.transaction(connection)
        for row in delete:
            self._add(transaction, plan, DELETED, row, _values(plan, row), {})
        for row in update:
            # SQLAlchemy names the values it looks for ``old_<column>``.
            old = {key: row.get(f"old_{key}", MISSING) for key in plan.by_key if f"old_{key}" in row}
            new = {key: value for key, value in row.items() if key in plan.by_key}
            self._add(transaction, plan, UPDATED, new, _values(plan, old), _values(plan, new))
        for row in insert:
            self._add(transaction, plan, CREATED, row, {}, _values(plan, row))
        if transaction.autocommit:
            self._bracket.settle(transaction)

    @staticmethod
    def _add(
        transaction: Transaction, plan: SecondaryPlan, kind: Any, row: Any, before: Any, after: Any
    ) -> None:
        identity = tuple(row.get(key) for key in plan.pk)
        partial = len(before or after) < len(plan.by_key)
        transaction.add(Change(plan, kind, identity, before, after, partial=partial))

    # --- post_update -------------------------------------------------------------------------

    def _wrap_post_update(self, original: Any) -> Any:
        def post_update(base_mapper: Any, states: Any, uow: Any, post_update_cols: Any) -> Any:
            states = list(states)
            try:
                changed = [self._changed(state, post_update_cols) for state in states]
            except Exception:  # noqa: BLE001 - hooks never raise into the application
                internal_error("post_update")
                changed = []
            result = original(base_mapper, states, uow, post_update_cols)
            try:
                self._post_updated(base_mapper, uow, changed)
            except Exception:  # noqa: BLE001 - hooks never raise into the application
                internal_error("post_update")
            return result

        return post_update

    def _changed(self, state: Any, columns: Any) -> tuple[Any, dict[str, tuple[Any, Any]]]:
        """The columns that the statement is about to write, with both sides."""
        mapper = state.manager.mapper
        dict_ = state.dict
        found: dict[str, tuple[Any, Any]] = {}
        for column in columns:
            prop = mapper._columntoproperty.get(column)
            if prop is None:
                continue
            history = state.manager[prop.key].impl.get_history(state, dict_, attributes.PASSIVE_NO_INITIALIZE)
            if history.added:
                found[prop.key] = (history.deleted[0] if history.deleted else MISSING, history.added[0])
        return state, found

    def _post_updated(self, base_mapper: Any, uow: Any, changed: Any) -> None:
        transaction = None
        for state, columns in changed:
            plan = self._planner.plan(state.manager.mapper) if columns else None
            if plan is None:
                continue
            if transaction is None:
                transaction = self._bracket.transaction(uow.transaction.connection(base_mapper))
            before: dict[str, Any] = {}
            after: dict[str, Any] = {}
            for key, (old, new) in columns.items():
                column = plan.by_key.get(key)
                if column is not None:
                    # A row inserted in this flush holds NULL until this statement.
                    known = None if old is MISSING and state.key is None else old
                    before[column.name] = known if known is MISSING else column.snapshot(known)
                    after[column.name] = column.snapshot(new)
            if before:
                identity = tuple(state.dict.get(key) for key in plan.pk)
                partial = any(value is MISSING for value in before.values())
                transaction.add(Change(plan, UPDATED, identity, before, after, partial=partial))
        if transaction is not None and transaction.autocommit:
            self._bracket.settle(transaction)


def _values(plan: SecondaryPlan, row: Any) -> dict[str, Any]:
    return {column.name: column.snapshot(row[key]) for key, column in plan.by_key.items() if key in row}
