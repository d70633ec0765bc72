"""Secrets that stand beside their name in a text: ``name=value`` and ``"name": "value"``.

Names are looked for everywhere, also inside the value of a harmless one: it may be a command line, or JSON in
a text in JSON. Only behind a secret name the end of the value is looked for. Each pass takes time in
proportion to the length of the text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Named", "without_assigned", "without_members", "without_parameters"]

Named: TypeAlias = "Callable[[str], Callable[[str], str] | None]"
"""For a name: what makes the text that stands in place of its value; None when the name is not secret."""

_ASSIGNED: Final = re.compile(
    # All that may belong to a name, so that it is found wherever in it the secret word is: --db.password=x.
    r"(?<![\w.%\[\]-])(?P<name>[\w.%\[\]-]++)\s{0,4}(?::=|=>|=(?!=))\s{0,4}"
)
_MEMBER: Final = re.compile(
    # JSON in a text in JSON escapes the backslashes of its quotes, too.
    r"(?<!\\)(?P<quote>\\{0,63}+[\"'])(?P<name>(?:[\w .$\[\]-]|\\++u[0-9A-Fa-f]{4}){1,64})(?P=quote)"
    r"\s{0,8}(?::|=>)\s{0,8}"
)
_PARAMETER: Final = re.compile(r"(?<=[?&;#])(?P<name>[\w%.~\[\]-]++)=")
_UNICODE_ESCAPE: Final = re.compile(r"\\++u([0-9A-Fa-f]{4})")
_QUOTE: Final = re.compile(r"(?<!\\)(\\*+)([\"'])")
_OPENING: Final = re.compile(r"(?:[bBuUrRfFnNeExX]|[bBfF][rR]|[rR][bBfF])?(\\*+)([\"'])")
"""Of a quoted value; letters before it are Python's or SQL's: ``b'x'``."""
_OWN: Final = "[redacted "
_BRACKET_OR_QUOTE: Final = re.compile(r"[\[{(]|[\]})]|(?<!\\)(\\*+)([\"'])")
_BARE: Final = re.compile(r"(?:[^\s\"'\\\[{(]|\\*+[\"'](?![\s,;:)}\]>\\]|\Z)|\\++(?![\"']))*+")
"""A value without quotes, up to a space. A quote in the middle of a word is part of it."""
_BEHIND_VALUE: Final = re.compile(r"\s{0,8}(?:[,}\]]|\Z)")
_BARE_MEMBER: Final = re.compile(r"[^\s,}\]\"'{\[(\\]*+")
_BARE_PARAMETER: Final = re.compile(r"(?:=*[^&;#\s\"'<>=][^&;#\s\"'<>]*+)?")
"""Equals signs alone are no value."""
_MARK: Final = re.compile(r"(?:\[redacted(?: \w+)?\]|hmac-sha256:[0-9a-f]{64})(?![^\s\"'\\,;&#)}\]<>])")


def without_assigned(text: str, named: Named) -> str:
    """A text without the values of secret names in ``name=value``, also ``:=`` and ``=>``."""
    return _without(text, _ASSIGNED, _BARE, named)


def without_parameters(text: str, named: Named) -> str:
    """A text without the values of secret names in the parameters of URLs: ``?name=value&...``."""
    return _without(text, _PARAMETER, _BARE_PARAMETER, named)


def without_members(text: str, named: Named) -> str:
    """A text without the values of secret names in quotes: ``"name": "value"``, ``'name' => [...]``."""
    return _without(text, _MEMBER, _BARE_MEMBER, named)


def _without(text: str, pattern: re.Pattern[str], bare: re.Pattern[str], named: Named) -> str:
    kept: list[str] = []
    done = position = 0
    while found := pattern.search(text, position):
        position = found.end()
        if pattern is _ASSIGNED and _is_parameter(text, found):
            continue
        name = found["name"]
        if text.endswith(_OWN, 0, found.start("name")):
            continue  # of a mark that stands for something else: [redacted card]
        hidden = named(_UNICODE_ESCAPE.sub(_character, name) if "\\" in name else name)
        if hidden is None:
            continue
        start, end = _value(text, position, bare)
        if start == end or _MARK.match(text, start):
            continue
        kept += (text[done:start], hidden(text[start:end]))
        done = position = end
    return "".join((*kept, text[done:])) if kept else text


def _is_parameter(text: str, found: re.Match[str]) -> bool:
    """Whether a name belongs to a URL, where a value ends before the next: a pass of its own reads these."""
    begins, ends = found.span()
    return begins > 0 and text[begins - 1] in "?&;#" and text[ends : ends + 1] not in ('"', "'", "\\")


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16))


def _value(text: str, start: int, bare: re.Pattern[str]) -> tuple[int, int]:
    """Where the value that begins at `start` begins and ends, its outer quotes left out."""
    opening = _OPENING.match(text, start)
    if opening is not None:
        start = opening.end()
        if text.startswith(opening[2] * 2, start):  # three quotes: a text of Python's
            end = text.find(opening[2] * 3, start + 2)
            return start + 2, len(text) if end < 0 else end
        return start, _end_of_quoted(text, opening)[0]
    end = start
    while True:
        run = bare.match(text, end)
        end = end if run is None else run.end()
        if text[end : end + 1] not in _BRACKETS:
            return start, end
        end = _end_of_brackets(text, end)
        if text[end : end + 1] in _BEHIND_BRACKETS:
            return start, end


_BRACKETS: Final = frozenset("[{(")
_BEHIND_BRACKETS: Final = frozenset(("", *",;:)]}>&"))


def _end_of_quoted(text: str, opening: re.Match[str]) -> tuple[int, int]:
    """Where a quoted text ends, without and with its closing quote; at the end of all if it is not closed.

    A quote that JSON writes with n backslashes closes what was opened with n; inside, it has 2n + 1.
    """
    escapes, quote = len(opening[1]), opening[2]
    position = opening.end()
    while found := _QUOTE.search(text, position):
        position = found.end()
        count = len(found[1])
        if found[2] != quote or (count > escapes and not _closes(text, position, count, escapes)):
            continue
        if not escapes and quote == "'" and text[position : position + 1] == "'":
            position += 1  # SQL writes a quote twice
            continue
        return found.start() + max(count - escapes, 0), position
    return len(text), len(text)


def _closes(text: str, position: int, count: int, escapes: int) -> bool:
    """Whether a quote behind more backslashes than the opening one ends the value, which itself ends in some.

    It may as well be a quote in the value, where JSON stands in a `repr`: what follows has to be JSON's.
    """
    return count % (2 * escapes + 2) == escapes and _BEHIND_VALUE.match(text, position) is not None


def _end_of_brackets(text: str, start: int) -> int:
    """Where a bracket that opens at `start` is closed; at the end of all if it is not."""
    depth, position = 0, start
    while found := _BRACKET_OR_QUOTE.search(text, position):
        position = found.end()
        if found[2]:
            position = _end_of_quoted(text, found)[1]
            continue
        depth += 1 if found[0] in _BRACKETS else -1
        if not depth:
            return position
    return len(text)
