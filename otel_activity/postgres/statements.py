"""The SQL files as statements.

A file is a template of `psycopg.sql`: ``{name}`` takes an identifier or a literal, ``%(name)s`` a parameter,
and a brace that belongs to the SQL is doubled.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from psycopg import sql

from otel_activity.codec.rows import COLUMNS

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["Migration", "migrations", "statement"]

_COLUMN_LIST: Final = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))


class Migration(NamedTuple):
    """One step of the schema. The file ``0002_add_x.sql`` has version 2 and the name ``add_x``."""

    version: int
    name: str
    template: str

    def statement(self, schema: str) -> sql.Composed:
        """The migration's SQL for one schema."""
        return sql.SQL(self.template).format(schema=sql.Identifier(schema))


@lru_cache(maxsize=1)
def migrations() -> tuple[Migration, ...]:
    """All migrations, in order."""
    found = []
    for file in _directory().joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(int(number), name, file.read_text("utf-8")))
    return tuple(sorted(found))


def statement(name: str, schema: str, /, **parts: sql.Composable) -> sql.Composed:
    """The statement in ``sql/<name>.sql`` for one schema.

    Args:
        name: the file's name without its ending.
        schema: replaces ``{schema}``, quoted.
        **parts: what else the file has places for.
    """
    return sql.SQL(_text(name)).format(schema=sql.Identifier(schema), columns=_COLUMN_LIST, **parts)


@lru_cache(maxsize=64)
def _text(name: str) -> str:
    return _directory().joinpath(f"{name}.sql").read_text("utf-8").rstrip()


def _directory() -> Traversable:
    return resources.files("otel_activity.postgres").joinpath("sql")
