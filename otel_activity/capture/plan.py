"""What to take from objects of a mapper: worked out once for each mapper, then only followed."""

from __future__ import annotations

import copy
import enum
import fnmatch
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from sqlalchemy import JSON, ClauseElement, Column, LargeBinary, Table, TypeDecorator
from sqlalchemy.orm.base import LoaderCallableStatus
from sqlalchemy.types import TypeEngine

from otel_activity import semconv
from otel_activity.capture.rules import RulesMaker, mappers_named
from otel_activity.classes import Classes
from otel_activity.codec import ATOMIC, INT_MAX, INT_MIN, encode, text_of
from otel_activity.codec.changes import changes_json
from otel_activity.events import Redacted
from otel_activity.semconv import RedactionMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.orm import Mapper

    from otel_activity.capture.rules import Redacts, Rules
    from otel_activity.events import Commit, Unit

__all__ = [
    "EXPRESSION",
    "MISSING",
    "ColumnPlan",
    "Copied",
    "Encoded",
    "Plan",
    "Planner",
    "TablePlan",
    "entity_id",
    "is_expression",
    "table_names",
]


class _Missing:
    """No value is known. (Not None: that is a value.)"""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
EXPRESSION: Final = _Missing()
"""As `MISSING`, for the old value of a column that a statement certainly wrote: with an SQL expression."""
_logger: Final = logging.getLogger("otel_activity")
_REDACTED: Final = Redacted()
_COPY_DEPTH: Final = 8
_COPY_ITEMS: Final = 1_000_000
"""Most items of a copy, counted as if all parts on one level were as long as the longest."""
_SHORTEST_SECRET: Final = 12
_KNOWN_SCHEMAS: Final = 100
"""Bound on the schemas that one plan is remembered for: there may be one for each tenant."""


def is_expression(value: Any) -> bool:
    """Whether an attribute was set to something that the server computes, by the unit of work's own rule."""
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


class Encoded:
    """A value that was encoded when it was captured, because it may change afterwards."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Copied:
    """A copy of a JSON-like value, to be cleaned and encoded later: copying is all that cannot wait."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Odd(Exception):
    """A value that cannot simply be copied."""


def _copied(value: Any, depth: int, room: int) -> Any:
    """A copy of plain lists and dicts that hold nothing but such, and values that cannot change.

    Raises:
        _Odd: it holds something else, is nested deeper than `depth` (it may refer to itself), or there is not
            `room` for so many items (it may hold one part again and again).
    """
    kind = type(value)
    if kind is not list and kind is not dict:
        raise _Odd
    room //= len(value) or 1
    if not room:
        raise _Odd
    if kind is list:
        items = value.copy()
        if not ATOMIC.issuperset(map(type, items)):
            if not depth:
                raise _Odd
            items = [item if type(item) in ATOMIC else _copied(item, depth - 1, room) for item in items]
        return items
    pairs = value.copy()
    if not ATOMIC.issuperset(map(type, pairs)):
        raise _Odd
    if not ATOMIC.issuperset(map(type, pairs.values())):
        if not depth:
            raise _Odd
        for key, item in pairs.items():
            if type(item) not in ATOMIC:
                pairs[key] = _copied(item, depth - 1, room)
    return pairs


class ColumnPlan:
    """One column of an entity."""

    __slots__ = (
        "at_once",
        "column",
        "is_equal",
        "is_plain",
        "key",
        "mode",
        "name",
        "null_if_missing",
        "plan",
    )

    def __init__(
        self, plan: TablePlan, rules: Rules, key: str, name: str, column: Column[Any], is_equal: Any
    ) -> None:
        self.plan = plan
        self.key = key
        self.name = name
        self.column = column
        self.is_equal = is_equal
        self.mode = rules.mode(column, key)
        self.at_once = self.mode is not None or _may_change(column.type)
        # Two values that cannot change may be compared and kept as they are.
        self.is_plain = self.mode is None and getattr(is_equal, "__func__", None) is TypeEngine.compare_values
        # SQLAlchemy inserts NULL for an attribute that was never set, unless something else provides it.
        self.null_if_missing = (
            column.default is None
            and column.server_default is None
            and column.computed is None
            and column.identity is None
            and not column.primary_key
        )

    def snapshot(self, value: Any) -> Any:
        """A value that stays as it is now: the same object if it cannot change, else encoded."""
        if self.mode is not None and value is not None:
            unknown = isinstance(value, LoaderCallableStatus) or is_expression(value)
            return _REDACTED if unknown else self.plan.redactor.hide(value, self.mode)
        kind = type(value)
        if kind in ATOMIC:
            return value
        if kind is list or kind is dict:
            try:
                return Copied(_copied(value, _COPY_DEPTH, _COPY_ITEMS))
            except _Odd:
                pass
        return self.plan.encoded(value)

    def late(self, value: Any) -> Any:
        """As `snapshot`, for a value that was taken as it was."""
        return value if value is MISSING or value is _REDACTED else self.plan.encoded(value)


class TablePlan:
    """What every entity of one table has in common."""

    __slots__ = (
        "_attributes",
        "_hidden",
        "_translated",
        "collection",
        "delivery",
        "entity_type",
        "limit",
        "redactor",
        "schema",
    )

    def __init__(self, entity_type: str, table: Table, redactor: Redacts, limit: int) -> None:
        self.entity_type = entity_type
        self.delivery: str | None = None
        # SQLAlchemy's quoted_name is a subclass of str, which no encoder knows.
        self.collection = str(table.name)
        self.schema = None if table.schema is None else str(table.schema)
        self.redactor = redactor
        self.limit = limit
        self._hidden: tuple[RedactionMode | None, ...] | None = None
        self._attributes: dict[str, tuple[str, str, dict[str, Any]]] = {}
        self._translated: dict[str | None, Self] = {}

    def translated(self, schemas: Mapping[str | None, Any]) -> Self:
        """The same where a ``schema_translate_map`` is in force; the plan itself if it is not concerned."""
        schema = schemas.get(self.schema, self.schema)
        if schema == self.schema or not (schema is None or isinstance(schema, str)):
            return self
        found = self._translated.get(schema)
        if found is None:
            found = copy.copy(self)
            found.schema = None if schema is None else str(schema)
            found._attributes = {}
            found._translated = {}
            if len(self._translated) >= _KNOWN_SCHEMAS:
                self._translated.clear()
            self._translated[schema] = found
        return found

    def attributes_of(self, kind: tuple[str, str, str], unit: Unit, commit: Commit) -> dict[str, Any]:
        """What all events of one kind in one unit share."""
        known = self._attributes.get(kind[0])
        if known is None or known[0] != unit.database or known[1] != unit.system:
            known = (unit.database, unit.system, self._constant(kind, unit))
            self._attributes[kind[0]] = known
        attributes = known[2].copy()
        attributes[semconv.TRANSACTION_ID] = unit.transaction_id
        attributes[semconv.COMMIT] = commit._value_
        if unit.proof is not None:
            attributes[semconv.DATABASE_TRANSACTION] = str(unit.proof)
        if unit.error is not None:
            attributes[semconv.ERROR_TYPE] = unit.error
        return attributes

    def _constant(self, kind: tuple[str, str, str], unit: Unit) -> dict[str, Any]:
        """What all events of one kind in one database share."""
        _, action, operation = kind
        return {
            semconv.ACTIVITY_ACTION: action,
            semconv.ACTIVITY_OUTCOME: "success",
            semconv.ENTITY_TYPE: self.entity_type,
            semconv.DB_SYSTEM_NAME: unit.system,
            semconv.DB_NAMESPACE: f"{unit.database}|{self.schema}" if self.schema else unit.database,
            semconv.DB_COLLECTION_NAME: self.collection,
            semconv.DB_OPERATION_NAME: operation,
            semconv.ACTIVITY_SCHEMA_VERSION: semconv.SCHEMA_VERSION,
        }

    def hide_key(self, rules: Rules, columns: Iterable[tuple[Any, str]]) -> None:
        """Note which parts of the primary key are secret. A hash, if there is a key for it, tells entities
        apart where a mask could not."""
        modes = [rules.mode(column, key) for column, key in columns]
        if any(modes):
            self._hidden = tuple(RedactionMode.HASH if mode is RedactionMode.MASK else mode for mode in modes)

    @property
    def has_secret_key(self) -> bool:
        """Whether a part of the primary key is secret."""
        return self._hidden is not None

    def entity_id(self, identity: tuple[Any, ...]) -> str:
        """The primary key as text: the value itself, or a JSON array for a composite key."""
        hidden = self._hidden
        if hidden is not None and len(hidden) == len(identity):  # an action may name a key of another length
            identity = tuple(
                part if mode is None or part is None else self.redactor.hide_in_text(part, mode)
                for part, mode in zip(identity, hidden, strict=True)
            )
        elif hidden is not None:
            identity = tuple(self.redactor.hide_in_text(part, RedactionMode.HASH) for part in identity)
        return scrubbed_id(identity, self.redactor)

    def changes(self, names: tuple[str, ...], sides: tuple[str, ...], values: Sequence[Any]) -> msgspec.Raw:
        """``activity.changes`` as its own JSON, without what looks like a secret whatever its name.

        Args:
            names, sides, values: see `codec.changes.changes_json`.
        """
        return msgspec.Raw(self.redactor.scrub(changes_json(names, sides, values, self.plain, self.limit)))

    def plain(self, value: Any) -> Any:
        """What the event says of a captured value: plain JSON, or nothing (`msgspec.UNSET`)."""
        kind = type(value)
        if kind is Encoded:
            return value.value
        if value is MISSING:
            return msgspec.UNSET
        return encode(self.redactor.clean(value.value) if kind is Copied else value, self.limit)

    def encoded(self, value: Any) -> Any:
        """A JSON-like value, nested secrets removed; SQL expressions and loader symbols are not values."""
        if isinstance(value, LoaderCallableStatus) or is_expression(value):
            return MISSING
        if value is JSON.NULL:  # a symbol of SQLAlchemy's, and a number to all others
            return Encoded(None)
        return Encoded(encode(self.redactor.clean(value), self.limit))


class Plan(TablePlan):
    """What to take from objects of one mapper. It does not keep the mapper alive."""

    __slots__ = (
        "at_once",
        "by_key",
        "columns",
        "defaults",
        "generated",
        "keys",
        "names",
        "pk",
        "plain_names",
        "reads_back",
        "row_keys",
        "settable",
        "unknown",
        "version",
        "watched",
    )

    def __init__(self, mapper: Mapper[Any], rules: Rules, redactor: Redacts, limit: int) -> None:
        # A class may be mapped to a join of tables, which has no name.
        local = mapper.local_table
        table = local if isinstance(local, Table) else next(t for t in mapper.tables if isinstance(t, Table))
        super().__init__(mapper.class_.__name__, table, redactor, limit)
        self.version = mapper.version_id_col
        # A flush step may read values of a new object back, for which it gives it its identity.
        self.reads_back = mapper.base_mapper.eager_defaults is True or (
            self.version is not None and mapper.version_id_generator is False
        )
        columns = list(self._columns(mapper, rules))
        self.columns: tuple[ColumnPlan, ...] = tuple(columns)
        self.names = tuple([column.name for column in columns])
        self.by_key = {column.key: column for column in columns}
        self.plain_names = {column.key: column.name for column in columns if column.is_plain}
        """Name by key of the columns whose values, if they cannot change, are compared and kept as is."""
        self.pk = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
        self.hide_key(rules, zip(mapper.primary_key, self.pk, strict=True))
        # For the snapshot of an inserted row: what an attribute that is not there stands for, and which
        # columns cannot wait to be encoded.
        self.keys = tuple(column.key for column in columns)
        self.defaults = tuple(None if column.null_if_missing else MISSING for column in columns)
        self.unknown = (MISSING,) * len(columns)
        self.at_once = tuple((index, column) for index, column in enumerate(columns) if column.at_once)
        # Columns that an UPDATE changes without the application having set them.
        self.watched: tuple[ColumnPlan, ...] = tuple(
            column
            for column in columns
            if column.column is mapper.version_id_col
            or column.column.onupdate is not None
            or column.column.server_onupdate is not None
        )
        # Those of them that get a value from Python, and how statements name the row: see `updates`.
        self.generated = tuple(column for column in self.watched if _from_python(column.column))
        # Those that a statement computes only where the application says so.
        self.settable = tuple(
            column for column in columns if column not in self.watched or column in self.generated
        )
        self.row_keys = (
            {table: self._row_key(mapper, table) for table in mapper.tables} if self.generated else {}
        )

    def _row_key(self, mapper: Mapper[Any], table: Any) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
        """Names of a table's key in the parameters of an UPDATE, and their places in the identity."""
        columns = list(getattr(table, "primary_key", ()))
        labels = tuple(str(getattr(column, "_label", "")) for column in columns)
        known = [column for column in columns if mapper.columns.contains_column(column)]
        keys = [mapper.get_property_by_column(column).key for column in known]
        if not columns or not all(labels) or len(keys) != len(columns) or not set(keys) <= set(self.pk):
            return None
        return labels, tuple(self.pk.index(key) for key in keys)

    def _columns(self, mapper: Mapper[Any], rules: Rules) -> Iterable[ColumnPlan]:
        names: set[str] = set()
        for prop in mapper.column_attrs:
            column = prop.columns[0]
            if not isinstance(column, Column) or column.table is None:
                continue
            if not rules.wanted(column, prop.key):
                continue
            name = str(column.name if column.name not in names else prop.key)
            names.add(name)
            impl = mapper.class_manager[prop.key].impl
            yield ColumnPlan(self, rules, prop.key, name, column, impl.is_equal)


def _from_python(column: Column[Any]) -> bool:
    """Whether ``onupdate`` is a function or a value, not an SQL expression."""
    onupdate = column.onupdate
    return onupdate is not None and not (onupdate.is_clause_element or onupdate.is_sequence)


def _may_change(kind: Any) -> bool:
    """Whether values of a column type may be mutable: they are encoded when they are captured."""
    if isinstance(kind, (TypeDecorator, LargeBinary)):
        return True
    try:
        python_type = kind.python_type
    except NotImplementedError:
        return True
    return python_type not in ATOMIC and not issubclass(python_type, enum.Enum)


def entity_id(identity: tuple[Any, ...]) -> str:
    """A primary key as text: the value itself, or a JSON array for a composite key."""
    if len(identity) == 1:
        value = identity[0]
        if type(value) is int:
            try:
                return str(value)
            except ValueError:  # Python writes no number of more than 4,300 digits
                pass
        return text_of(value)
    return msgspec.json.encode([_key_part(part) for part in identity]).decode()


def scrubbed_id(identity: tuple[Any, ...], redactor: Redacts) -> str:
    """As `entity_id`, without what looks like a secret."""
    for part in identity:
        if type(part) is str and len(part) >= _SHORTEST_SECRET:
            return entity_id(
                tuple(redactor.scrub_key(part) if type(part) is str else part for part in identity)
            )
    return entity_id(identity)


def _key_part(value: Any) -> Any:
    if value is None or type(value) is bool or (type(value) is int and INT_MIN <= value <= INT_MAX):
        return value
    return text_of(value)


class Planner:
    """Plans by mapper and by table; None where the settings leave a table out."""

    def __init__(
        self,
        *,
        redactor: Redacts,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        limit: int = 65_536,
        classes: Classes | None = None,
    ) -> None:
        self._redactor = redactor
        self._classes = classes or Classes()
        self._rules = RulesMaker(redactor)
        self._include = include
        self._exclude = exclude
        self._limit = limit
        self.plans: dict[int, Plan | None] = {}
        """The plans made so far, by ``id()`` of the mapper; `plan` makes what is missing."""
        self._tables: dict[int, dict[Table, SecondaryPlan | None]] = {}
        self._mappers: dict[int, weakref.ref[Mapper[Any]]] = {}

    def _follow(self, mapper: Mapper[Any]) -> int:
        """The key of a mapper. A class that was made on the fly and is gone takes its plans with it."""
        key = id(mapper)

        def gone(_: object) -> None:
            for known in (self.plans, self._tables, self._mappers):
                known.pop(key, None)

        if key not in self._mappers:
            self._mappers[key] = weakref.ref(mapper, gone)
        return key

    def plan(self, mapper: Mapper[Any]) -> Plan | None:
        try:
            return self.plans[id(mapper)]
        except KeyError:
            plan = None
            if self._audited(mapper.tables):
                rules = self._rules.of_mapper(mapper)
                plan = Plan(mapper, rules, self._redactor, self._limit)
                classes = [each.class_.__name__ for each in mapper.iterate_to_root()]
                plan.delivery = self._classes.of(rules.delivery, (*classes, *table_names(mapper.tables)))
            self._warn_of_models(mapper, captured=plan is not None)
            self.plans[self._follow(mapper)] = plan
            return plan

    def _warn_of_models(self, mapper: Mapper[Any], *, captured: bool) -> None:
        """A model in the place of its table does the opposite of what was meant; said once for each."""
        setting, patterns = ("EXCLUDE", self._exclude) if captured else ("INCLUDE", self._include)
        model = mapper.class_.__name__
        if any(fnmatch.fnmatchcase(model, pattern) for pattern in patterns):
            if not captured and self._left_out(table_names(mapper.tables)):
                return
            _logger.error(
                "otel_activity: OTEL_ACTIVITY_%s names the model %s, but tables are meant: its changes are "
                "%scaptured; use %s",
                setting,
                model,
                "" if captured else "not ",
                ", ".join(sorted({str(table.name) for table in mapper.tables})),
            )

    def entity_id(self, entity_type: str | None, identity: tuple[Any, ...]) -> str:
        """A primary key as text, as the plan of the class of that name would show it."""
        for mapper in () if entity_type is None else mappers_named(entity_type):
            plan = self.plan(mapper)
            if plan is not None and plan.has_secret_key:
                return plan.entity_id(identity)
        return scrubbed_id(identity, self._redactor)

    def secondary(self, table: Table, mapper: Mapper[Any]) -> SecondaryPlan | None:
        """The plan of a relationship's secondary table; `mapper` is at one of its ends."""
        try:
            return self._tables[id(mapper)][table]
        except KeyError:
            plan = None
            if self._audited([table]):
                rules = self._rules.of_table(table, mapper.registry)
                plan = SecondaryPlan(table, rules, self._redactor, self._limit)
                plan.delivery = self._classes.of(rules.delivery, table_names([table]))
            self._tables.setdefault(self._follow(mapper), {})[table] = plan
            return plan

    def _audited(self, tables: Iterable[Any]) -> bool:
        names = table_names(tables)
        if self._left_out(names):
            return False
        return not self._include or any(
            fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self._include
        )

    def _left_out(self, names: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self._exclude)


def table_names(tables: Iterable[Any]) -> list[str]:
    """By what the settings may mean tables: with and without schema."""
    return [
        name for table in tables for name in (str(table.name), str(getattr(table, "fullname", table.name)))
    ]


class SecondaryPlan(TablePlan):
    """What to take from the rows of a many-to-many table."""

    __slots__ = ("by_key", "pk")

    def __init__(self, table: Table, rules: Rules, redactor: Redacts, limit: int) -> None:
        super().__init__(str(table.name), table, redactor, limit)
        self.by_key = {
            column.key: ColumnPlan(self, rules, column.key, str(column.name), column, None)
            for column in table.columns
            if rules.wanted(column, column.key)
        }
        keys = list(table.primary_key.columns) or [column for column in table.columns if column.foreign_keys]
        self.pk = tuple(column.key for column in keys)
        self.hide_key(rules, ((column, column.key) for column in keys))
