"""Patterns in settings that named nothing: said when a process ends, because models may be imported late."""

from __future__ import annotations

import difflib
import fnmatch
from typing import TYPE_CHECKING, Final

from sqlalchemy.orm import mapperlib

from otel_activity.capture.plan import table_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = ["Known", "misspelt"]

_NEAR: Final = 0.7
"""Similarity (`difflib`) from which on a name may have been meant."""
_MOST_NAMES: Final = 5_000
"""More than that are not compared: the process is to end."""


class Known:
    """Every table and model that SQLAlchemy knows now, used or not.

    There is no public way to ask; without the private one nothing is known.
    """

    def __init__(self) -> None:
        self.tables: set[str] = set()
        self.models: set[str] = set()
        for registry in list(getattr(mapperlib, "_all_registries", set)()):
            for mapper in list(registry.mappers):
                self.models.add(mapper.class_.__name__)
                self.tables.update(table_names(mapper.tables))
            self.tables.update(table_names(list(registry.metadata.tables.values())))


def misspelt(
    known: Known, *, include: Iterable[str], exclude: Iterable[str], rules: Iterable[str]
) -> Iterator[str]:
    """One line for each pattern that named nothing.

    A process that knows no table says nothing. Rules may mean actions that this process never performed:
    only one that looks like a table or model is mentioned. A model in the place of a table is said elsewhere.

    Args:
        known: the tables and models.
        include: patterns of tables.
        exclude: patterns of tables.
        rules: patterns of delivery rules that matched nothing yet.
    """
    if not known.tables:
        return
    both = known.tables | known.models
    for setting, patterns in (("INCLUDE", include), ("EXCLUDE", exclude)):
        for pattern in dict.fromkeys(patterns):
            if not _matches(pattern, both):
                yield _line(setting, pattern, "no table", _near(pattern, known.tables))
    for pattern in dict.fromkeys(rules):
        near = [] if _matches(pattern, both) else _near(pattern, both)
        if near:
            yield _line("DELIVERY_RULES", pattern, "no table, model or action", near)


def _line(setting: str, pattern: str, what: str, near: list[str]) -> str:
    meant = f"did you mean {' or '.join(near)}?" if near else "correct it, or leave it out"
    return f"OTEL_ACTIVITY_{setting}: {pattern!r} named {what} in this process; {meant}"


def _matches(pattern: str, names: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _near(pattern: str, names: Collection[str]) -> list[str]:
    if len(names) > _MOST_NAMES:
        return []
    by_lower: dict[str, str] = {}
    for name in sorted(names):
        by_lower.setdefault(name.lower(), name)
    found = difflib.get_close_matches(pattern.lower(), by_lower, n=2, cutoff=_NEAR)
    return [by_lower[name] for name in found]
