"""Output for people: escaped text, tables that fit the terminal, times. Output for programs: JSON lines.

Audit data is written by whoever uses the audited service, so nothing from an event reaches the terminal
unescaped: control characters, bidirectional overrides and lone surrogates appear as ``\\x1b``, ``\\u202e``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Column",
    "display_width",
    "fit",
    "json_line",
    "layout",
    "many",
    "note",
    "output_width",
    "printable",
    "say",
    "shown_time",
    "table_line",
]

ELLIPSIS: Final = "…"
GAP: Final = "  "
UNSAFE_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that are escaped: they move the cursor, reorder or hide text, or show nothing."""


def printable(text: str) -> str:
    """The text with everything that could steer a terminal, or deceive its reader, escaped.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(char) if unicodedata.category(char) in UNSAFE_CATEGORIES else char for char in text
    )


def _escaped(char: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char) or ascii(char)[1:-1]


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def display_width(text: str) -> int:
    """How many terminal cells the text takes: wide East Asian characters take two, combining marks none."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


def fit(text: str, width: int) -> str:
    """The text cut to `width` cells, with an ellipsis where something was cut off."""
    if display_width(text) <= width:
        return text
    used, kept = 0, []
    for char in text:
        used += _char_width(char)
        if used > width - 1:
            break
        kept.append(char)
    return "".join(kept) + ELLIPSIS


def output_width() -> int | None:
    """Columns of the terminal (``COLUMNS`` beats it); `None` when the output is no terminal: cut nothing."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: its heading.
        least: cells it keeps when the terminal is narrow; 0 means it is never cut.
        most: cells it may take at most; 0 means as many as it needs.
    """

    title: str
    least: int = 0
    most: int = 0


def layout(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None) -> list[int]:
    """How wide each column is, so that all of them fit into `width` cells.

    What is too much is taken from the widest column that may still shrink.
    """
    widths = [display_width(column.title) for column in columns]
    for row in rows:
        widths = [max(old, display_width(cell)) for old, cell in zip(widths, row, strict=True)]
    if width is None:
        return widths
    widths = [min(size, column.most or size) for size, column in zip(widths, columns, strict=True)]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    for _ in range(max(excess, 0)):
        spare = [index for index, column in enumerate(columns) if 0 < column.least < widths[index]]
        if not spare:
            break
        widths[max(spare, key=widths.__getitem__)] -= 1
    return widths


def table_line(cells: Sequence[str], widths: Sequence[int], *, pad_last: bool = False) -> str:
    """One line of a table: each cell cut and padded to its width; the last one only if wanted."""
    fitted = [fit(cell, width) for cell, width in zip(cells, widths, strict=True)]
    padded = [cell + " " * (width - display_width(cell)) for cell, width in zip(fitted, widths, strict=True)]
    line = GAP.join(padded)
    return line if pad_last else line.rstrip()


# --- times ----------------------------------------------------------------------------------------


def many(number: int | None, thing: str) -> str:
    """A number of things in words.

    >>> many(1, "event"), many(2, "event")
    ('1 event', '2 events')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def shown_time(nanoseconds: int, *, local: bool = False, milliseconds: bool = False) -> str:
    """A time for people, in UTC (which a heading says), or local with its offset."""
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    if local:
        with contextlib.suppress(OverflowError, ValueError):  # the first and the last day of all stay in UTC
            moment = moment.astimezone()
    fraction = f".{nanoseconds % 1_000_000_000 // 1_000_000:03d}" if milliseconds else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction}{moment:%z}"[: None if local else -5]


# --- writing --------------------------------------------------------------------------------------


def json_line(value: Any) -> str:
    """One JSON object on one line; every character that is not plain ASCII is escaped, so it can do no harm.

    JSON escapes are part of the value: a program that parses the line gets the data exactly.
    """
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def say(line: str) -> None:
    """Write one line of results to standard output; the caller has escaped what came from outside."""
    click.echo(line)


def note(line: str) -> None:
    """Write one line about the results to standard error, where programs do not look for data."""
    click.echo(line, err=True)
