"""Transaction control inside SQL text: ``text("ROLLBACK TO a")``, ``exec_driver_sql("begin; commit")``."""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Script", "Step", "Verb", "read"]


class Verb(enum.Enum):
    """What one control statement does."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    RELEASE = "release"
    ROLLBACK_TO = "rollback to"
    PREPARE = "prepare transaction"
    COMMIT_PREPARED = "commit prepared"
    ROLLBACK_PREPARED = "rollback prepared"


class Step(NamedTuple):
    """One control statement.

    Attributes:
        verb: what it does.
        name: of the savepoint, folded as the server folds it, or the id of the prepared transaction.
    """

    verb: Verb
    name: str = ""


class Script(NamedTuple):
    """The control statements of one text.

    Attributes:
        steps: in the order of the text.
        alone: the text consists of that one statement.
    """

    steps: tuple[Step, ...]
    alone: bool


_NOTHING: Final = Script((), alone=False)
_CACHED_LENGTH: Final = 4096  # longer texts are scripts: read once, and too big to keep

_HINT: Final = re.compile(
    r"\b(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE)\b", re.IGNORECASE
)
# What may hide a semicolon or a keyword. Every alternative is linear: these texts come from anywhere.
_TOKEN: Final = re.compile(
    r"""(?P<comment>--[^\n]*|/\*)
      |(?:\b[eE])'(?:[^'\\]|\\.|'')*+(?:'|\Z)
      |'(?:[^']|'')*+(?:'|\Z)
      |"(?:[^"]|"")*+(?:"|\Z)
      |\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)
      |(?P<end>;)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")
_BLOCK: Final = re.compile(r"CREATE\b.*\bBEGIN\b", re.IGNORECASE | re.DOTALL)
_BLOCK_END: Final = re.compile(r"END\b", re.IGNORECASE)
_CONTROL: Final = re.compile(
    r"(?P<verb>BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION)\b"
    r"(?:\s+(?:WORK|TRANSACTION)\b)?\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_PREPARED: Final = re.compile(r"PREPARED\s+'(?P<gid>(?:[^']|'')*)'", re.IGNORECASE)
_GID: Final = re.compile(r"'(?P<gid>(?:[^']|'')*)'")
_SAVEPOINT: Final = re.compile(
    r"(?P<to>TO\s+)?(?:SAVEPOINT\s+)?(?:\"(?P<quoted>(?:[^\"]|\"\")+)\"|(?P<plain>[^\s\";]+))", re.IGNORECASE
)


def read(text: str) -> Script:
    """The control statements of a text; literals, comments and function bodies do not count."""
    return _read(text) if len(text) <= _CACHED_LENGTH else _read.__wrapped__(text)


@lru_cache(maxsize=512)
def _read(text: str) -> Script:
    if _HINT.search(text) is None:
        return _NOTHING
    statements = list(_statements(text))
    steps = tuple(step for statement in statements if (step := _step(statement)) is not None)
    return Script(steps, alone=len(statements) == 1) if steps else _NOTHING


def _statements(text: str) -> Iterator[str]:
    """Cut a text at its semicolons; what stands in a function's or trigger's block stays together."""
    block = False
    for statement in _pieces(text):
        if block:
            block = _BLOCK_END.match(statement) is None
            continue
        block = _BLOCK.match(statement) is not None and _BLOCK_END.search(statement) is None
        yield statement


def _pieces(text: str) -> Iterator[str]:
    parts: list[str] = []
    at = 0
    while (token := _TOKEN.search(text, at)) is not None:
        if token["end"] is not None:
            parts.append(text[at : token.start()])
            if piece := "".join(parts).strip():
                yield piece
            parts.clear()
            at = token.end()
        elif token["comment"] is not None:
            parts.append(text[at : token.start()] + " ")
            at = _after_comment(text, token)
        else:
            parts.append(text[at : token.end()])
            at = token.end()
    parts.append(text[at:])
    if piece := "".join(parts).strip():
        yield piece


def _after_comment(text: str, token: re.Match[str]) -> int:
    """Where a comment ends. PostgreSQL's block comments nest."""
    if token["comment"] != "/*":
        return token.end()
    depth, at = 1, token.end()
    while depth:
        edge = _COMMENT_EDGE.search(text, at)
        if edge is None:
            return len(text)
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at


def _step(statement: str) -> Step | None:
    match = _CONTROL.match(statement)
    if match is None:
        return None
    verb, rest = match["verb"].upper(), match["rest"]
    if verb in {"BEGIN", "START"}:
        return Step(Verb.BEGIN)
    if verb == "SAVEPOINT":
        return _named(Verb.SAVEPOINT, rest)
    if verb == "RELEASE":
        return _named(Verb.RELEASE, rest)
    if verb in {"COMMIT", "END"}:
        prepared = _PREPARED.match(rest)
        return Step(Verb.COMMIT_PREPARED, prepared["gid"]) if prepared else Step(Verb.COMMIT)
    if verb in {"ROLLBACK", "ABORT"}:
        prepared = _PREPARED.match(rest)
        if prepared:
            return Step(Verb.ROLLBACK_PREPARED, prepared["gid"])
        name = _SAVEPOINT.match(rest)
        return _named(Verb.ROLLBACK_TO, rest) if name and name["to"] else Step(Verb.ROLLBACK)
    gid = _GID.match(rest)
    return Step(Verb.PREPARE, gid["gid"]) if gid else None


def _named(verb: Verb, rest: str) -> Step | None:
    name = _SAVEPOINT.match(rest)
    if name is None:
        return None
    quoted = name["quoted"]
    return Step(verb, name["plain"].lower() if quoted is None else quoted.replace('""', '"'))
