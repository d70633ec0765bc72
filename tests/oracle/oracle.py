"""Row-level triggers record the truth; `Oracle.check` holds the captured events against it."""

from __future__ import annotations

import datetime as dt
import json
import pathlib
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql
from psycopg.types.json import set_json_loads
from sqlalchemy import Column, DateTime, LargeBinary, Numeric, Table, Uuid
from sqlalchemy import Enum as EnumType
from sqlalchemy.types import JSON, Date

from otel_activity import semconv
from otel_activity.classes import DELIVERIES
from otel_activity.codec import decode
from otel_activity.codec.kinds import EnumValue
from otel_activity.delivery import RoutedDelivery
from otel_activity.events import Commit, Redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import DeclarativeBase, Mapper

    from otel_activity.events import Event, Unit

__all__ = ["Mismatch", "Oracle", "RecordingDelivery", "RoutedRecording", "Row"]

_SQL: Final = pathlib.Path(__file__).parent / "sql"
_NAMES: Final = {
    "INSERT": (semconv.ENTITY_CREATED, "create"),
    "UPDATE": (semconv.ENTITY_UPDATED, "update"),
    "DELETE": (semconv.ENTITY_DELETED, "delete"),
}


class RecordingDelivery:
    """Collects the units that were released, encoded, in the order of their release."""

    def __init__(self) -> None:
        self.released: list[list[Event]] = []
        self.undecided_units: list[tuple[Unit, BaseException | None]] = []
        self.prepared: set[int] = set()
        self._keep: list[Unit] = []

    def prepare(self, unit: Unit) -> None:
        assert id(unit) not in self.prepared, "a unit is prepared once"
        self.prepared.add(id(unit))
        self._keep.append(unit)  # so that the id stays its own

    def committed(self, unit: Unit) -> None:
        assert id(unit) in self.prepared, "prepare comes before committed"
        assert unit.commit is Commit.REPORTED
        self.released.append(unit.events())

    def aborted(self, unit: Unit) -> None:
        """Nothing to keep: the oracle says whether that was right."""

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        self.undecided_units.append((unit, error))

    def take(self) -> list[list[Event]]:
        """What was released since the last call."""
        released, self.released = self.released, []
        return released


class _Part(RecordingDelivery):
    """One way of a router: keeps which event was made of which entry."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, Event]] = []

    def committed(self, unit: Unit) -> None:
        super().committed(unit)
        self.made += zip(map(id, unit.entries), self.released.pop(), strict=True)


class RoutedRecording:
    """A router in front of a recording: units are split by class, and their parts put together again.

    Args:
        whole: is told of units as if nobody had split them.
    """

    def __init__(self, whole: RecordingDelivery) -> None:
        self._whole = whole
        self._parts = {name: _Part() for name in DELIVERIES}
        self._router = RoutedDelivery(self._parts, "durable")

    def prepare(self, unit: Unit) -> None:
        self._whole.prepare(unit)
        self._router.prepare(unit)

    def committed(self, unit: Unit) -> None:
        self._router.committed(unit)
        made = [pair for part in self._parts.values() for pair in part.made]
        for part in self._parts.values():
            part.made.clear()
        events = dict(made)
        assert len(made) == len(events) == len(unit.entries), "each entry is in one part"
        assert id(unit) in self._whole.prepared, "prepare comes before committed"
        self._whole.released.append([events[id(entry)] for entry in unit.entries])

    def aborted(self, unit: Unit) -> None:
        self._router.aborted(unit)

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        self._router.undecided(unit, error)
        self._whole.undecided(unit, error)


class Mismatch(AssertionError):
    """The events do not say what the triggers saw."""


@dataclass
class Row:
    """What one trigger saw."""

    position: int
    table: str
    operation: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    used: bool = field(default=False, compare=False)

    @property
    def nothing(self) -> bool:
        """Whether the statement wrote the row as it was."""
        return self.operation == "UPDATE" and self.old == self.new


class Oracle:
    """The triggers on one database, and the comparison.

    Args:
        dsn: the database.
        base: the declarative base whose tables are watched.
        before_known: whether each side of each change must be known (`fetch_before`), not only right.
    """

    def __init__(self, dsn: str, base: type[DeclarativeBase], *, before_known: bool = False) -> None:
        self.before_known = before_known
        self._tables: dict[str, Table] = {table.name: table for table in base.metadata.sorted_tables}
        self._mappers = {mapper.class_.__name__: mapper for mapper in base.registry.mappers}
        # A lock that is not given in time means that a session was left open: fail, do not hang.
        self._connection = psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=10s")
        set_json_loads(lambda text: json.loads(text, parse_float=Decimal), self._connection)
        self._seen: set[str] = set()

    def close(self) -> None:
        self._connection.close()

    def install(self) -> None:
        """Put the triggers on every table; the tables must exist."""
        self._connection.execute((_SQL / "install.sql").read_bytes())
        watch = (_SQL / "watch_table.sql").read_text()
        for name in self._tables:
            self._connection.execute(sql.SQL(watch).format(table=sql.Identifier(name)))
        if "account" in self._tables:
            self._connection.execute((_SQL / "stamp.sql").read_bytes())

    def empty(self) -> None:
        """Empty all tables, the oracle's included."""
        names = sql.SQL(", ").join(sql.Identifier(name) for name in [*self._tables, "oracle_row"])
        self._connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(names))

    def take(self) -> list[list[Row]]:
        """The transactions that became visible since the last call, in the order they began to write."""
        found = self._connection.execute((_SQL / "take_rows.sql").read_bytes()).fetchall()
        transactions: dict[str, list[Row]] = {}
        for seq, txid, table, operation, old, new in sorted(found):
            transactions.setdefault(txid, []).append(Row(seq, table, operation, old, new))
        return list(transactions.values())

    # --- comparing -----------------------------------------------------------------------------

    def check(self, delivery: RecordingDelivery) -> int:
        """Compare what was released since the last call, transaction by transaction; how many events."""
        units = delivery.take()
        count = sum(map(len, units))
        for rows in self.take():
            if all(row.nothing for row in rows):
                self._drop_nothing(units, rows)
            elif units:
                self._check_unit(units.pop(0), rows)
            else:
                raise Mismatch(f"no unit for the transaction\n{_describe_rows(rows)}")
        if units:
            raise Mismatch("no transaction for the unit\n" + "\n---\n".join(map(_describe_events, units)))
        return count

    def _drop_nothing(self, units: list[list[Event]], rows: list[Row]) -> None:
        """A transaction that changed nothing may have a unit and may have none."""
        if units:
            try:
                self._check_unit(units[0], rows)
            except Mismatch:
                return
            del units[0]

    def check_concatenated(self, delivery: RecordingDelivery) -> int:
        """As `check` under AUTOCOMMIT, where units and transactions need not correspond."""
        events = [event for unit in delivery.take() for event in unit]
        rows = [row for rows in self.take() for row in rows]
        self._compare(events, rows)
        return len(events)

    def _check_unit(self, unit: list[Event], rows: list[Row]) -> None:
        ids = {event.attributes[semconv.TRANSACTION_ID] for event in unit}
        if len(ids) != 1 or ids & self._seen:
            raise Mismatch(f"a unit has one transaction id of its own, not {ids}")
        self._seen |= ids
        self._compare(unit, rows)

    def _compare(self, events: list[Event], rows: list[Row]) -> None:
        try:
            self._match(events, rows)
        except Mismatch as error:
            raise Mismatch(f"{error}\n{_describe_events(events)}\n---\n{_describe_rows(rows)}") from None

    def _match(self, events: list[Event], rows: list[Row]) -> None:
        """Give each event its rows; each row that changed something is used once; the order is the same.

        An event of a joined hierarchy stands for one row in each of its tables, and where it stands in the
        order is where any one of them was written.
        """
        last = -1
        for number, event in enumerate(events):
            found = self._rows_of(event, rows)
            later = [row.position for row in found if row.position > last]
            if not later:
                raise Mismatch(f"event {number} is out of order")
            last = min(later)
        for row in rows:
            if not row.used and not row.nothing:
                raise Mismatch(f"no event for {_describe_rows([row])}")

    def _rows_of(self, event: Event, rows: list[Row]) -> list[Row]:
        view = self._view(event)
        operation = event.attributes[semconv.DB_OPERATION_NAME]
        if (event.name, event.attributes[semconv.ACTIVITY_ACTION]) != _NAMES[operation]:
            raise Mismatch(f"{event.name} does not fit {operation}")
        changes = event.attributes[semconv.CHANGES]
        unknown_names = set(changes) - {name for names in view.values() for name in names.values()}
        if unknown_names:
            raise Mismatch(f"no such columns: {unknown_names}")
        found = []
        for table, names in view.items():
            row = self._row_in(table, names, event, operation, rows)
            if row is not None:
                row.used = True
                found.append(row)
            elif operation != "UPDATE" or any(name in changes for name in self._own(table, names, view)):
                raise Mismatch(f"no row of {table.name} for {_describe_event(event)}")
        if not found:
            raise Mismatch(f"no row for {_describe_event(event)}")
        self._check_capture(event, changes, operation)
        return found

    @staticmethod
    def _own(table: Table, names: dict[str, str], view: dict[Table, dict[str, str]]) -> set[str]:
        """Event names that this table alone has: the key stands in every table of a hierarchy."""
        others = {
            name for other, other_names in view.items() if other is not table for name in other_names.values()
        }
        return set(names.values()) - others

    def _view(self, event: Event) -> dict[Table, dict[str, str]]:
        """The tables of the event's entity, and the event's name for each of their columns."""
        kind = event.attributes[semconv.ENTITY_TYPE]
        mapper: Mapper[Any] | None = self._mappers.get(kind)
        if mapper is None:
            table = self._tables[kind]
            self._check_table(event, table)
            return {table: {column.name: column.name for column in table.columns}}
        self._check_table(event, mapper.local_table)
        view: dict[Table, dict[str, str]] = {table: {} for table in mapper.tables}  # type: ignore[misc]
        taken: set[str] = set()
        for prop in mapper.column_attrs:
            if not isinstance(prop.columns[0], Column):
                continue
            name = prop.columns[0].name if prop.columns[0].name not in taken else prop.key
            taken.add(name)
            for column in prop.columns:
                if isinstance(column, Column):
                    view[column.table][column.name] = name  # type: ignore[index]
        return view

    @staticmethod
    def _check_table(event: Event, table: Any) -> None:
        if event.attributes[semconv.DB_COLLECTION_NAME] != table.name:
            raise Mismatch(f"{_describe_event(event)} is of {table.name}")

    def _row_in(
        self, table: Table, names: dict[str, str], event: Event, operation: str, rows: list[Row]
    ) -> Row | None:
        """The first unused row that the event can be about; an UPDATE of nothing may be passed over."""
        why: Mismatch | None = None
        for row in rows:
            if row.used or row.table != table.name or row.operation != operation:
                continue
            if _identity(table, row) != event.attributes[semconv.ENTITY_ID]:
                continue
            try:
                self._check_row(table, names, event.attributes[semconv.CHANGES], row)
                return row
            except Mismatch as error:
                why = error
                if not row.nothing:
                    break
        if why is not None and operation != "UPDATE":
            raise why
        if why is not None and any(name in event.attributes[semconv.CHANGES] for name in names.values()):
            raise why
        return None

    def _check_row(self, table: Table, names: dict[str, str], changes: dict[str, Any], row: Row) -> None:
        for column in table.columns:
            name = names.get(column.name)
            old = _python(column, (row.old or {}).get(column.name))
            new = _python(column, (row.new or {}).get(column.name))
            where = f"{table.name}.{column.name}: {old!r} -> {new!r}"
            if name is None:
                if row.operation == "UPDATE" and old != new:
                    raise Mismatch(f"{where} changed and is not mapped")
                continue
            sides = changes.get(name)
            if sides is None:
                if row.operation != "UPDATE" or old != new:
                    raise Mismatch(f"{where} changed and is not in the event")
                continue
            expected = _expected_sides(row.operation)
            if set(sides) - expected:
                raise Mismatch(f"{where}: {row.operation} has {set(sides)}")
            for side, value in (("before", old), ("after", new)):
                if side in sides and not _same(decode(sides[side]), value, column):
                    raise Mismatch(f"{where}, the event says {sides}")
            if row.operation == "UPDATE" and old == new and set(sides) == expected:
                raise Mismatch(f"{where} did not change, the event says {sides}")
            if self.before_known and "before" in expected and "before" not in sides:
                raise Mismatch(f"{where}: before is not known")

    @staticmethod
    def _check_capture(event: Event, changes: dict[str, Any], operation: str) -> None:
        whole = all(set(sides) == _expected_sides(operation) for sides in changes.values())
        if event.attributes[semconv.CAPTURE] != ("full" if whole else "partial"):
            raise Mismatch(f"{_describe_event(event)} is called {event.attributes[semconv.CAPTURE]}")


def _expected_sides(operation: str) -> set[str]:
    return {"INSERT": {"after"}, "UPDATE": {"before", "after"}, "DELETE": {"before"}}[operation]


def _identity(table: Table, row: Row) -> str:
    values = row.new if row.new is not None else row.old
    assert values is not None
    key = [_python(column, values[column.name]) for column in table.primary_key.columns]
    if len(key) == 1:
        return str(key[0])
    return json.dumps([part if isinstance(part, int) else str(part) for part in key], separators=(",", ":"))


def _python(column: Column[Any], value: Any) -> Any:
    """A value of the trigger's JSON as the column's Python type."""
    if value is None:
        return None
    for kind, convert in _CONVERTERS.items():
        if isinstance(column.type, kind):
            return convert(column, value)
    return value


_CONVERTERS: Final[dict[type, Callable[[Column[Any], Any], Any]]] = {
    JSON: lambda _, value: value,
    EnumType: lambda column, value: column.type.enum_class[value],  # type: ignore[attr-defined]
    Numeric: lambda _, value: Decimal(value),
    DateTime: lambda _, value: dt.datetime.fromisoformat(value),
    Date: lambda _, value: dt.date.fromisoformat(value),
    LargeBinary: lambda _, value: bytes.fromhex(value.removeprefix("\\x")),
    Uuid: lambda _, value: uuid.UUID(value),
}


def _same(said: Any, true: Any, column: Column[Any]) -> bool:
    if isinstance(said, Redacted):
        return true is not None and column.name == "api_token"
    if column.name == "api_token":
        return said is None and true is None
    if isinstance(said, EnumValue):
        return true is not None and said.name == true.name
    return bool(type(said) is type(true) or isinstance(column.type, JSON)) and bool(said == true)


def _describe_event(event: Event) -> str:
    attributes = event.attributes
    return (
        f"{attributes[semconv.DB_OPERATION_NAME]} {attributes[semconv.ENTITY_TYPE]} "
        f"{attributes[semconv.ENTITY_ID]} {attributes[semconv.CHANGES]}"
    )


def _describe_events(events: list[Event]) -> str:
    return "\n".join(_lines("event", map(_describe_event, events)))


def _describe_rows(rows: list[Row]) -> str:
    return "\n".join(
        _lines(
            "row  ", (f"{row.position} {row.operation} {row.table} {row.old} -> {row.new}" for row in rows)
        )
    )


def _lines(label: str, texts: Any) -> Iterator[str]:
    for text in texts:
        yield f"{label} {text}"
