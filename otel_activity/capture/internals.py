"""Two places of SQLAlchemy's unit of work that have no public event: many-to-many rows and post-update.

Both write rows that no mapper event announces, so their functions are wrapped, by name, and only here.
`problems` says whether the installed SQLAlchemy still has them; the tests prove it for 2.0 and 2.1.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import dependency, persistence
from sqlalchemy.orm.base import PassiveFlag

from otel_activity.capture.change import CREATED, DELETED, UPDATED, Change
from otel_activity.capture.guard import internal_error
from otel_activity.capture.mapper import correct, read_row, record
from otel_activity.capture.plan import MISSING
from otel_activity.capture.updates import announce

if TYPE_CHECKING:
    from otel_activity.capture.bracket import Bracket
    from otel_activity.capture.plan import Plan, Planner, SecondaryPlan
    from otel_activity.capture.transaction import Transaction

__all__ = ["InternalHooks", "problems"]

# SQLAlchemy 2.1 put an underscore before these names of 2.0.
_MANY_TO_MANY: Final = getattr(dependency, "_ManyToManyDP", None) or getattr(dependency, "ManyToManyDP", None)
_POST_UPDATE: Final = next(
    (name for name in ("_post_update", "post_update") if hasattr(persistence, name)), None
)
_RUN_CRUD: Final = "_run_crud"
# The order of the statements; without it only that order is lost.
_sort_states: Final[Any] = getattr(persistence, "_sort_states", lambda _, states: states)


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

    def __init__(self, bracket: Bracket, planner: Planner, *, fetch_before: bool = False) -> None:
        self._bracket = bracket
        self._fetch = fetch_before
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
        plan = self._planner.secondary(dependency.secondary, dependency.mapper)
        if plan is None:
            return
        connection = uow.transaction.connection(dependency.mapper)
        transaction = self._bracket.transaction(connection)
        if transaction.schemas is not None:
            plan = plan.translated(transaction.schemas)
        for row in delete:
            self._add(transaction, plan, DELETED, row, _whole(plan, row), {})
        for row in update:
            # SQLAlchemy names the values it looks for ``old_<column>``.
            old = {key: row.get(f"old_{key}", MISSING) for key in plan.by_key if f"old_{key}" in row}
            new = {key: value for key, value in row.items() if key in plan.by_key}
            self._add(transaction, plan, UPDATED, new, _values(plan, old), _values(plan, new))
        for row in insert:
            self._add(transaction, plan, CREATED, row, {}, _whole(plan, row, inserted=True))
        if transaction.autocommit:
            self._bracket.settle(transaction)

    @staticmethod
    def _add(
        transaction: Transaction, plan: SecondaryPlan, kind: Any, row: Any, before: Any, after: Any
    ) -> None:
        identity = tuple(row.get(key) for key in plan.pk)
        partial = any(value is MISSING for values in (before, after) for value in values.values())
        transaction.add(Change(plan, kind, identity, before, after, partial=partial))

    # --- post_update -------------------------------------------------------------------------

    def _wrap_post_update(self, original: Any) -> Any:
        def post_update(base_mapper: Any, states: Any, uow: Any, post_update_cols: Any) -> Any:
            states = list(states)
            try:
                found = self._announced(base_mapper, states, uow, post_update_cols)
            except Exception:  # noqa: BLE001 - hooks never raise into the application
                internal_error("post_update")
                found = []
            result = original(base_mapper, states, uow, post_update_cols)
            try:
                self._post_updated(base_mapper, uow, found)
            except Exception:  # noqa: BLE001 - hooks never raise into the application
                internal_error("post_update")
            return result

        return post_update

    def _announced(self, base_mapper: Any, states: Any, uow: Any, columns: Any) -> list[_PostUpdate]:
        """What the statements are about to write, in their order."""
        found = []
        true = self._bracket.mistaken.true
        for state in _sort_states(base_mapper, states):
            plan = self._planner.plan(state.manager.mapper)
            if plan is not None:
                post = _PostUpdate(plan, state, columns, deleted=uow.is_deleted(state))
                post.old = {key: true(state, key, old) for key, old in post.old.items()}
                if post.written:
                    found.append(post)
                    if plan.generated:
                        announce(self._bracket.transaction(_connection_of(state, base_mapper, uow)), plan)
        if self._fetch:
            for post in found:
                connection = _connection_of(post.state, base_mapper, uow)
                post.old.update(read_row(connection, post.plan, post.state, post.unknown()))
        return found

    def _post_updated(self, base_mapper: Any, uow: Any, found: list[_PostUpdate]) -> None:
        for post in found:
            transaction = self._bracket.transaction(_connection_of(post.state, base_mapper, uow))
            if transaction.schemas is not None:
                post.plan = post.plan.translated(transaction.schemas)
            deleted = uow.is_deleted(post.state)
            change = post.change(deleted)
            if change is not None:
                if transaction.noted is not None and post.plan.generated:
                    learn = self._bracket.mistaken.learn
                    correct(post.plan, change, learn(post.plan, post.state, change, transaction.noted))
                transaction.add(change)
            if deleted:
                # The row that is deleted next is not the one that the session remembers.
                transaction.held.setdefault(post.state, {}).update(post.new)
            if transaction.autocommit:
                self._bracket.settle(transaction)


def _connection_of(state: Any, base_mapper: Any, uow: Any) -> Any:
    """The connection that an object is written through: a session with shards chooses one for each."""
    choose = uow.session.connection_callable
    return uow.transaction.connection(base_mapper) if choose is None else choose(base_mapper, state.obj())


class _PostUpdate:
    """One row that a post-update writes: what is known of it before, and afterwards.

    Attributes:
        written: whether the statement writes anything.
        old: by attribute, what the row holds before: columns it writes, and those it changes by itself.
        new: by attribute, what the row holds afterwards.
    """

    __slots__ = ("new", "old", "plan", "state", "written")

    def __init__(self, plan: Plan, state: Any, columns: Any, *, deleted: bool) -> None:
        self.plan = plan
        self.state = state
        self.old: dict[str, Any] = {}
        self.new: dict[str, Any] = {}
        mapper = state.manager.mapper
        onupdate = [column.column for column in plan.watched if column.column.onupdate is not None]
        tables = set()
        for column in {*columns, *onupdate}:
            prop = mapper._columntoproperty.get(column)
            if prop is None:
                continue
            history = state.manager[prop.key].impl.get_history(
                state, state.dict, PassiveFlag.PASSIVE_NO_INITIALIZE
            )
            if history.added:
                tables.add(column.table)
                self.new[prop.key] = history.added[0]
                if column not in columns and not deleted:
                    # Set by the application, and written a moment ago with the rest of the row.
                    self.old[prop.key] = history.added[0]
                else:
                    self.old[prop.key] = history.deleted[0] if history.deleted else self._unset(prop.key)
        self.written = bool(tables)
        for watched in plan.watched:
            if watched.column.table in tables and watched.key not in self.new:
                self.old[watched.key] = state.dict.get(watched.key, self._unset(watched.key))

    def _unset(self, key: str) -> Any:
        """A row that was inserted in this flush holds NULL where nothing was set."""
        column = self.plan.by_key.get(key)
        inserted = self.state.key is None and key not in self.state.expired_attributes
        return None if inserted and column is not None and column.null_if_missing else MISSING

    def unknown(self) -> list[str]:
        return [key for key, old in self.old.items() if old is MISSING]

    def change(self, deleted: bool) -> Change | None:
        """The event, now that the statement has run; None when it changed nothing."""
        plan = self.plan
        dict_ = self.state.dict
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        partial = False
        for key, old in self.old.items():
            column = plan.by_key.get(key)
            if column is None:
                continue
            if key not in self.new:
                # Of a row that is to be deleted SQLAlchemy reads back the version and nothing else.
                stale = deleted and column.column is not plan.version
                self.new[key] = MISSING if stale else dict_.get(key, MISSING)
            new = self.new[key]
            if old is MISSING or new is MISSING or column.is_equal(new, old) is not True:
                partial |= record(column, old, new, before, after)
        if not before:
            return None
        identity = tuple(dict_.get(key) for key in plan.pk)
        return Change(plan, UPDATED, identity, before, after, partial=partial)


def _values(plan: SecondaryPlan, row: Any) -> dict[str, Any]:
    return {column.name: column.snapshot(row[key]) for key, column in plan.by_key.items() if key in row}


def _whole(plan: SecondaryPlan, row: Any, *, inserted: bool = False) -> dict[str, Any]:
    """As `_values`, with every column: the unit of work names the keys only."""
    values: dict[str, Any] = {}
    for key, column in plan.by_key.items():
        if key in row:
            values[column.name] = column.snapshot(row[key])
        else:
            values[column.name] = None if inserted and column.null_if_missing else MISSING
    return values
