"""From a filter to parametrised SQL. The text of every query is in ``sql/``."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from otel_activity.codec.rows import column_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_activity.store.filters import EventFilter, Position

__all__ = ["Query", "Selection", "statement", "static"]

_COLUMN_TEXTS: Final = frozenset(
    {"actions", "outcomes", "actor_type", "actor_id", "entity_type", "entity_id", "tenant_id", "project_id"}
)
"""Fields that are compared with a text column: a long value is compared in the form that the column holds."""

Query = tuple[sql.Composed, dict[str, Any]]


@functools.cache
def _text(name: str) -> str:
    folder = importlib.resources.files(__package__) / "sql"
    return (folder / f"{name}.sql").read_text("utf-8")


@functools.cache
def _conditions() -> dict[str, sql.SQL]:
    parts = re.split(r"^-- name: (\w+)\n", _text("conditions"), flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: sql.SQL(text.strip()) for name, text in pairs}


def static(name: str) -> sql.SQL:
    """The query of that name, which depends on nothing."""
    return sql.SQL(_text(name))


def statement(name: str, schema: str, conditions: Iterable[sql.Composable] = ()) -> sql.Composed:
    """The query of that name for a schema, restricted by `conditions`."""
    joined = sql.SQL("\n  AND ").join(conditions)
    if not joined.as_string():
        joined = sql.Composed([sql.SQL("true")])
    return sql.SQL(_text(name)).format(schema=sql.Identifier(schema), conditions=joined)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _stored(value: str | tuple[str, ...]) -> Any:
    return [column_text(item) for item in value] if isinstance(value, tuple) else column_text(value)


class Selection:
    """The rows that a filter asks for, within what the store lets its user see."""

    def __init__(self, wanted: EventFilter, *, tenant: str | None = None) -> None:
        self.conditions: list[sql.Composable] = []
        self.parameters: dict[str, Any] = {}
        for field in dataclasses.fields(wanted):
            self._restrict(field.name, getattr(wanted, field.name))
        if tenant is not None:
            self.conditions.append(_conditions()["store_tenant"])
            self.parameters["store_tenant"] = _stored(tenant)

    def _restrict(self, name: str, value: Any) -> None:
        if value is None or value == ():
            return
        self.conditions.append(_conditions()[name])
        self.parameters[name] = _stored(value) if name in _COLUMN_TEXTS else _plain(value)

    def page(self, schema: str, limit: int | None, after: Position | None) -> Query:
        """At most `limit` events (`None`: all), newest first, beyond `after`."""
        conditions = list(self.conditions)
        parameters = {**self.parameters, "limit": limit}
        if after is not None:
            conditions.append(_conditions()["after_position"])
            parameters |= {"after_time": after.moment, "after_id": after.id}
        return statement("search", schema, conditions), parameters

    def count(self, schema: str) -> Query:
        """The number of events."""
        return statement("count", schema, self.conditions), self.parameters

    def entity_types(self, schema: str, limit: int) -> Query:
        """At most `limit` types of entity."""
        return statement("entity_types", schema, self.conditions), {**self.parameters, "limit": limit}

    def arrivals(self, schema: str, **parameters: Any) -> Query:
        """The events of transactions that were not surely over at the horizon."""
        return statement("arrivals", schema, self.conditions), {**self.parameters, **parameters}

    def arrived(self, schema: str, **parameters: Any) -> Query:
        """The ids of those events."""
        return statement("arrived", schema, self.conditions), {**self.parameters, **parameters}
