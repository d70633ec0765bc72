"""Compare events with what the database's own triggers recorded: one to one, by content."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from otel_activity.codec import decode, display
from otel_activity.codec.kinds import EnumValue, Replaced, Rest, Truncated
from otel_activity.events import Hashed, Redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["ChangedRow", "EntityEvent", "Reconciliation", "disagreement", "reconcile"]

EXAMPLES: Final = 5
"""How many mismatches of each kind are described."""

_OPERATIONS: Final = ("INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class ChangedRow:
    """One row change that the database committed.

    Attributes:
        transaction: PostgreSQL's id of the transaction.
        table: name of the table.
        operation: ``INSERT``, ``UPDATE`` or ``DELETE``.
        key: values of the primary key, as text.
        old: the row before, columns to JSON values; None for an insert.
        new: the row after; None for a delete.
    """

    transaction: str
    table: str
    operation: str
    key: tuple[str, ...]
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None


@dataclass(frozen=True)
class EntityEvent:
    """One stored event, as far as it is compared.

    Attributes:
        transaction: ``activity.transaction.id``.
        table: ``db.collection.name``.
        operation: ``db.operation.name``.
        key: ``activity.entity.id``, taken apart.
        entity_type: ``activity.entity.type``.
        changes: ``activity.changes``, encoded as it was stored.
    """

    transaction: str
    table: str
    operation: str
    key: tuple[str, ...]
    entity_type: str
    changes: Mapping[str, Any]


@dataclass
class Reconciliation:
    """The result. An event with a wrong value counts twice: the true one is missing, this one is extra."""

    transactions: int = 0
    rows: int = 0
    events: int = 0
    missing: int = 0
    extra: int = 0
    mixed_transactions: int = 0
    by_operation: dict[str, int] = field(default_factory=dict)
    by_entity: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether the events are exactly what the database committed."""
        return not (self.missing or self.extra or self.mixed_transactions)

    def as_json(self) -> dict[str, Any]:
        """All numbers and examples, for programs."""
        return asdict(self) | {"clean": self.clean}


def reconcile(
    rows: Sequence[ChangedRow],
    events: Sequence[EntityEvent],
    types: Mapping[str, Mapping[str, str]],
) -> Reconciliation:
    """Match each committed row change with one event of the same content.

    Args:
        rows: what the database committed, in order.
        events: what was stored, in order.
        types: for each table its columns' PostgreSQL types, by which values are compared.
    """
    result = Reconciliation(
        transactions=len({row.transaction for row in rows}),
        rows=len(rows),
        events=len(events),
        by_operation={name: sum(row.operation == name for row in rows) for name in _OPERATIONS},
        by_entity=_counted(event.entity_type for event in events),
    )
    candidates: dict[tuple[str, str, tuple[str, ...]], list[EntityEvent]] = defaultdict(list)
    for event in events:
        candidates[event.table, event.operation, event.key].append(event)
    pairs: list[tuple[ChangedRow, EntityEvent]] = []
    for row in rows:
        same = candidates[row.table, row.operation, row.key]
        reasons = []
        for position, event in enumerate(same):
            reason = disagreement(row, event, types.get(row.table, {}))
            if reason is None:
                pairs.append((row, same.pop(position)))
                break
            reasons.append(reason)
        else:
            result.missing += 1
            _explain(result, "missing", row, reasons[0] if reasons else "no event")
    for left in candidates.values():
        for event in left:
            result.extra += 1
            _explain(result, "extra", event, "no such committed change")
    result.mixed_transactions = _mixed(pairs)
    if result.mixed_transactions:
        result.examples.append(f"{result.mixed_transactions} transaction ids do not match the database's")
    return result


def disagreement(row: ChangedRow, event: EntityEvent, types: Mapping[str, str]) -> str | None:
    """Why the event does not describe this row change, or None if it does.

    A side that the event leaves out is not known to it, and agrees. But a column that an UPDATE changed has
    to be named, and a side that cannot exist (the row before its INSERT) must not be there.
    """
    for column, sides in event.changes.items():
        for side, truth in (("before", row.old), ("after", row.new)):
            if side not in sides:
                continue
            if truth is None:
                return f"{column}: has a value {side} an {row.operation}"
            if column not in truth:
                return f"{column}: no such column"
            if not _agrees(decode(sides[side]), truth[column], types.get(column, "")):
                shown = display(sides[side])
                return f"{column} {side}: the event says {shown}, the database {truth[column]!s:.80}"
    if row.old is not None and row.new is not None:
        for column, value in row.new.items():
            if value != row.old[column] and column not in event.changes:
                return f"{column}: changed, but the event does not name it"
    return None


def _mixed(pairs: Iterable[tuple[ChangedRow, EntityEvent]]) -> int:
    """How many transactions have events of several ids, or share one: it has to be one to one."""
    ours: dict[str, set[str]] = defaultdict(set)
    theirs: dict[str, set[str]] = defaultdict(set)
    for row, event in pairs:
        ours[row.transaction].add(event.transaction)
        theirs[event.transaction].add(row.transaction)
    return sum(len(ids) > 1 for ids in (*ours.values(), *theirs.values()))


def _counted(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(sorted(counts.items()))


def _explain(result: Reconciliation, kind: str, what: ChangedRow | EntityEvent, reason: str) -> None:
    if sum(example.startswith(kind) for example in result.examples) < EXAMPLES:
        key = ", ".join(what.key)
        result.examples.append(f"{kind}: {what.operation} {what.table} ({key}): {reason}")


# --- values ---------------------------------------------------------------------------------------


def _agrees(value: Any, truth: Any, kind: str) -> bool:
    """Whether a decoded value of an event is the JSON value that PostgreSQL made of the column."""
    if isinstance(value, (Redacted, Hashed, Truncated, Replaced, Rest)):
        return True  # marked as not being the value
    if isinstance(value, EnumValue):
        return bool(truth == value.name)
    if truth is None or value is None:
        return truth is None and value is None
    reader = _READERS.get(kind)
    if reader is None:
        return _equal_json(value, truth)
    try:
        return bool(reader(value) == reader(truth))
    except (ValueError, TypeError, InvalidOperation):
        return False


def _equal_json(value: Any, truth: Any) -> bool:
    if isinstance(value, (Redacted, Hashed, Truncated, Replaced, Rest)):
        return True
    if isinstance(value, dict):
        if not isinstance(truth, dict) or value.keys() != truth.keys():
            return False
        return all(_equal_json(item, truth[key]) for key, item in value.items())
    if isinstance(value, list):
        if not isinstance(truth, list) or len(value) != len(truth):
            return False
        return all(map(_equal_json, value, truth))
    if isinstance(truth, Decimal):  # truth is read with exact numbers, JSON columns hold floats
        return isinstance(value, float) and value == float(truth)
    return type(value) is type(truth) and bool(value == truth)


def _moment(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment.astimezone(UTC)


def _day(value: Any) -> date:
    return value if isinstance(value, date) else date.fromisoformat(value)


def _uuid(value: Any) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


def _number(value: Any) -> Decimal:
    if not isinstance(value, (Decimal, int)):
        raise TypeError("a numeric column holds no floats")
    return Decimal(value)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "numeric": _number,
    "timestamptz": _moment,
    "date": _day,
    "uuid": _uuid,
}


def read_json(text: str) -> Any:
    """JSON with exact numbers, as the truth is compared."""
    return json.loads(text, parse_float=Decimal)
