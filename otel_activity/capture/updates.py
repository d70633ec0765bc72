"""What the UPDATEs of one flush step tell, and the session does not keep.

Two things: which columns were set to an SQL expression, where a hook of the application did that after ours
had run; and what a Python-side ``onupdate`` gave each row of one statement for many rows. (SQLAlchemy gives
all of its objects the value of the first row.)
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.orm.base import LoaderCallableStatus

from otel_activity.capture.plan import EXPRESSION, MISSING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_activity.capture.change import Change
    from otel_activity.capture.plan import ColumnPlan, Plan
    from otel_activity.capture.transaction import Transaction

__all__ = ["Mistaken", "Updates", "announce"]


def announce(transaction: Transaction, plan: Plan) -> Updates:
    """Ask for notes of the statements that a flush step is about to send."""
    updates = transaction.noted
    if updates is None:
        updates = transaction.noted = Updates()
    updates.announce(plan)
    return updates


class _Batch(NamedTuple):
    """One UPDATE of many rows.

    Attributes:
        columns: those with a Python-side ``onupdate``.
        rows: parameters of each row.
        found: the same by the key of the row, for each way that keys are named.
    """

    columns: frozenset[Any]
    rows: Sequence[dict[str, Any]]
    found: dict[tuple[str, ...], dict[tuple[Any, ...], dict[str, Any]]]

    def row(self, labels: tuple[str, ...], key: tuple[Any, ...]) -> dict[str, Any] | None:
        by_key = self.found.get(labels)
        if by_key is None:
            by_key = {tuple([row.get(label) for label in labels]): row for row in self.rows}
            self.found[labels] = by_key
        return by_key.get(key)


class Mistaken:
    """Values that sessions have wrong, until they read them anew: those of the first row of a batch."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Any, dict[str, tuple[Any, Any]]] = weakref.WeakKeyDictionary()
        self._any = False  # asked for every row; a weak dictionary takes longer to say that it is empty

    def learn(self, plan: Plan, state: Any, change: Change, updates: Updates) -> dict[str, Any]:
        """After an UPDATE of an object's row: by key, what it gave this row."""
        values = updates.generated(plan, state)
        if self._any and state in self._known:
            for column in plan.generated:
                if column.name in change.before:
                    self._known[state].pop(column.key, None)
        dict_ = state.dict
        wrong = {key: (dict_[key], own) for key, own in values.items() if dict_.get(key, own) != own}
        if wrong:
            self._known.setdefault(state, {}).update(wrong)
            self._any = True
        return values

    def true(self, state: Any, key: str, value: Any) -> Any:
        """What stands for `value`, which the session has."""
        if not self._any:
            return value
        wrong, own = self._known.get(state, {}).get(key, (MISSING, MISSING))
        return own if value is wrong else value


class Updates:
    """Notes of one step.

    Attributes:
        known: by state, what is known of its row before, where a hook of the application may change it.
    """

    __slots__ = ("_batches", "_computed", "_wanted", "known")

    def __init__(self) -> None:
        self.known: dict[Any, dict[str, Any]] = {}
        self._computed: set[Any] = set()
        self._batches: list[_Batch] = []
        self._wanted: set[Any] = set()

    def announce(self, plan: Plan) -> None:
        """An object is to be updated: the step has not begun to send statements."""
        self._computed.clear()
        self._batches.clear()
        self._wanted.update([column.column for column in plan.generated])

    def note(self, context: Any) -> None:
        """An UPDATE was executed."""
        compiled = context.compiled
        self._computed.update(compiled.postfetch)
        if context.executemany and len(context.compiled_parameters) > 1:
            columns = frozenset(compiled.update_prefetch)
            if not self._wanted.isdisjoint(columns):
                self._batches.append(_Batch(columns, context.compiled_parameters, {}))

    def written(self, plan: Plan, state: Any) -> dict[str, Any]:
        """Values before of the columns that were computed, or set without having been loaded."""
        known = self.known.pop(state, None)
        if known is None:
            return {}
        committed = state.committed_state
        keys = [key for key in committed if type(committed[key]) is LoaderCallableStatus and key in known]
        if self._computed:
            # A statement for another row may have computed it. This one was left alone if its value is
            # neither known nor forgotten.
            touched = known.keys() | state.expired_attributes | state.dict.keys()
            keys += [
                column.key
                for column in plan.settable
                if column.column in self._computed and column.key in touched
            ]
        found = {key: known.get(key, EXPRESSION) for key in keys}
        return {key: EXPRESSION if type(old) is LoaderCallableStatus else old for key, old in found.items()}

    def generated(self, plan: Plan, state: Any) -> dict[str, Any]:
        """By column, what ``onupdate`` gave this row; `MISSING` if it cannot be told from other rows."""
        if not self._batches:
            return {}
        values: dict[str, Any] = {}
        for column in plan.generated:
            for batch in self._batches:
                if column.column in batch.columns:
                    self._take(column, plan.row_keys.get(column.column.table), batch, state, values)
        return values

    @staticmethod
    def _take(
        column: ColumnPlan,
        row_key: tuple[tuple[str, ...], tuple[int, ...]] | None,
        batch: _Batch,
        state: Any,
        values: dict[str, Any],
    ) -> None:
        if row_key is None:
            values[column.key] = MISSING
            return
        labels, positions = row_key
        key = state.key or state.manager.mapper._identity_key_from_state(state)
        row = batch.row(labels, tuple([key[1][position] for position in positions]))
        if row is not None and column.column.key in row:
            values[column.key] = row[column.column.key]
