"""Which columns of an entity are captured and which are secret: what code declares, then what names say.

Nothing here raises. A declaration that makes no sense is reported in one line, and what it may have been
meant to protect is masked.
"""

from __future__ import annotations

import difflib
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Column, Table, TypeDecorator
from sqlalchemy.orm import mapperlib

from otel_activity.declare import Declaration, declarations
from otel_activity.semconv import RedactionMode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.orm import Mapper

__all__ = ["Redacts", "Rules", "RulesMaker", "mappers_named"]

_logger: Final = logging.getLogger("otel_activity")
_STRICTEST_FIRST: Final = (RedactionMode.DROP, RedactionMode.MASK, RedactionMode.HASH)
_COLUMN_KEYS: Final = ("redact", "exclude")


class Redacts(Protocol):
    """What capture needs of `otel_activity.redaction.Redactor`."""

    @property
    def default_mode(self) -> RedactionMode: ...
    @property
    def hashes(self) -> bool: ...

    def mode_of(self, name: str) -> RedactionMode | None: ...
    def mode_of_type(self, name: str) -> RedactionMode | None: ...
    def hide(self, value: Any, mode: RedactionMode) -> Any: ...
    def hide_in_text(self, value: Any, mode: RedactionMode) -> str: ...
    def clean(self, value: Any) -> Any: ...
    def scrub(self, encoded: bytes) -> bytes: ...
    def scrub_attributes(self, attributes: dict[str, Any]) -> dict[str, Any]: ...
    def scrub_shared(self, attributes: dict[str, Any]) -> dict[str, Any]: ...
    def scrub_key(self, part: str) -> str: ...


class Rules:
    """What is done to the columns of one entity.

    Attributes:
        entity: its name, for messages.
        declared: everything that `audited` said of it.
        broken: why one of these makes no sense; then every column is masked.
        delivery: the delivery class that was declared; the class's own beats its bases' and its tables'.
    """

    def __init__(self, maker: RulesMaker, entity: str, registry: Any) -> None:
        self._maker = maker
        self.entity = entity
        self._registry = registry
        self.declared: list[Declaration] = []
        self.broken = False
        self.delivery: str | None = None
        self.synonyms: dict[str, list[str]] = {}
        """Other names of attributes, by their key."""

    def add(self, target: Any, names: frozenset[str], label: str) -> None:
        """Take in what a class or table says of itself; `names` are those of its columns."""
        found: str | None = None
        for said in declarations(target):
            if not isinstance(said, Declaration):
                self._report(
                    f"info['activity'] of {label} is not understood; use audited({label}, mask=[...])"
                )
                continue
            self.declared.append(said)
            found = said.delivery or found
            for argument, name in said.names():
                if name not in names:
                    close = difflib.get_close_matches(str(name), names, n=1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    self._report(f"audited({argument}={name!r}) on {label} names no column{hint}")
        self.delivery = self.delivery or found

    def _report(self, problem: str) -> None:
        self.broken = True
        self._maker.report(f"{problem} Until it is corrected, every column of {self.entity} is redacted")

    def wanted(self, column: Column[Any], key: str) -> bool:
        """Whether a column appears in events at all."""
        names = {key, str(column.name)}
        if _exclude(column) or any(names & said.exclude for said in self.declared):
            return False
        included = [said.include for said in self.declared if said.include is not None]
        if included and not any(names & include for include in included):
            return False
        return self.mode(column, key) is not RedactionMode.DROP

    def mode(self, column: Column[Any], key: str, seen: frozenset[Any] = frozenset()) -> RedactionMode | None:
        """What is done to the values of a column; None when they are no secret.

        Code beats names, and a column that refers to a secret one holds the same secret.
        """
        said = list(self._said(column, key))
        if said:
            return next((mode for mode in _STRICTEST_FIRST if mode in said), None)
        foreign = [self._maker.of_target(fk, self._registry, seen | {column}) for fk in column.foreign_keys]
        redactor = self._maker.redactor
        named = [redactor.mode_of(name) for name in (str(column.name), key, *self.synonyms.get(key, ()))]
        named += [redactor.mode_of_type(name) for name in _type_names(column.type)]
        return next((mode for mode in _STRICTEST_FIRST if mode in foreign or mode in named), None)

    def _said(self, column: Column[Any], key: str) -> Iterator[RedactionMode | None]:
        """What code says; None for a column that it keeps."""
        yield from self._maker.of_info(column)
        if self.broken:
            yield RedactionMode.MASK
        for said in self.declared:
            for name in {key, str(column.name)}:
                if name in said.modes:
                    mode = said.modes[name]
                    if mode is RedactionMode.HASH:
                        self._maker.check_key(f"audited(hash={name!r}) on {self.entity}")
                    yield mode


class RulesMaker:
    """Makes the rules of entities, and reports each problem once.

    Args:
        redactor: knows what names say.
    """

    def __init__(self, redactor: Redacts) -> None:
        self.redactor = redactor
        self._reported: set[str] = set()

    def of_mapper(self, mapper: Mapper[Any]) -> Rules:
        """The rules of a mapped class: its own, its bases' and its tables' declarations."""
        rules = Rules(self, mapper.class_.__name__, mapper.registry)
        names = {prop.key for prop in mapper.column_attrs}
        names |= {
            str(column.name)
            for prop in mapper.column_attrs
            for column in prop.columns
            if isinstance(column, Column)
        }
        for synonym in mapper.synonyms:
            rules.synonyms.setdefault(synonym.name, []).append(synonym.key)
        for cls in mapper.class_.__mro__:
            rules.add(cls, frozenset(names), cls.__name__)
        for table in mapper.tables:
            if isinstance(table, Table):
                rules.add(table, _names(table), str(table.name))
        return rules

    def of_table(self, table: Table, registry: Any) -> Rules:
        """The rules of a table that no class is mapped to.

        Args:
            table: for example the secondary table of a relationship.
            registry: of the mapped classes that its foreign keys may lead to.
        """
        rules = Rules(self, str(table.name), registry)
        rules.add(table, _names(table), str(table.name))
        return rules

    def of_target(self, foreign_key: Any, registry: Any, seen: frozenset[Any]) -> RedactionMode | None:
        """What is done to the values of the column that a foreign key refers to."""
        try:
            column = foreign_key.column
        except Exception:  # noqa: BLE001 - the other table is not known to this program
            return None
        if column in seen:
            return None
        modes = []
        for mapper in [each for each in registry.mappers if column.table in each.tables]:
            if mapper.columns.contains_column(column):
                key = mapper.get_property_by_column(column).key
                modes.append(self.of_mapper(mapper).mode(column, key, seen))
        if not modes:
            modes.append(self.of_table(column.table, registry).mode(column, column.key, seen))
        return next((mode for mode in _STRICTEST_FIRST if mode in modes), None)

    def of_info(self, column: Column[Any]) -> Iterator[RedactionMode | None]:
        """What ``Column(info={"activity": {"redact": ...}})`` says, if anything."""
        wish = _info(column)
        where = f"info['activity'] of {column.table.name}.{column.name}"
        if isinstance(wish, bool):
            return
        if not isinstance(wish, dict) or any(key not in _COLUMN_KEYS for key in wish):
            self.report(
                f"{where} is not understood; use {{'redact': True, False, 'mask', 'hash' or 'drop'}} or "
                "{'exclude': True}. Until it is corrected, the column is redacted"
            )
            yield RedactionMode.MASK
            return
        if "redact" not in wish:
            return
        asked = wish["redact"]
        if isinstance(asked, bool):
            yield self.redactor.default_mode if asked else None
        elif asked in tuple(RedactionMode):
            if asked == RedactionMode.HASH:
                self.check_key(where)
            yield RedactionMode(asked)
        else:
            self.report(
                f"{where}: redact={asked!r} is not understood; use True, False, 'mask', 'hash' or 'drop'. "
                "Until it is corrected, the column is redacted"
            )
            yield RedactionMode.MASK

    def check_key(self, where: str) -> None:
        """Say that a hash was asked for and cannot be made."""
        if not self.redactor.hashes:
            self.report(
                f"{where} asks for a hash, and there is no key; set OTEL_ACTIVITY_REDACT_KEY. "
                "Until then the column is masked"
            )

    def report(self, problem: str) -> None:
        """One line, once."""
        if problem not in self._reported:
            self._reported.add(problem)
            _logger.error("otel_activity: %s", problem)


def mappers_named(name: str) -> list[Mapper[Any]]:
    """The mapped classes of a name. There is no public way to ask; without the private one there are none."""
    return [
        mapper
        for registry in getattr(mapperlib, "_all_registries", set)()
        for mapper in registry.mappers
        if mapper.class_.__name__ == name
    ]


def _names(table: Table) -> frozenset[str]:
    return frozenset(
        {str(column.key) for column in table.columns} | {str(column.name) for column in table.columns}
    )


def _type_names(kind: Any) -> list[str]:
    """The classes of a column's type, and of what it is made of, that are not SQLAlchemy's own."""
    parts = [kind, getattr(kind, "item_type", None)]
    parts += [part.impl_instance for part in parts if isinstance(part, TypeDecorator)]
    return [
        cls.__name__
        for part in parts
        for cls in type(part).__mro__
        if cls.__module__.partition(".")[0] not in ("sqlalchemy", "builtins")
    ]


def _info(column: Column[Any]) -> Any:
    return getattr(column, "info", {}).get("activity", {})  # a class may be mapped to a SELECT


def _exclude(column: Column[Any]) -> bool:
    wish: Mapping[str, Any] | Any = _info(column)
    return bool(wish.get("exclude", False)) if isinstance(wish, dict) else wish is False
