"""Which requests are reported: a small language of methods, routes and status codes.

A rule is up to three conditions with spaces between them, in any order; all must hold:

- methods: ``POST``, ``PUT|PATCH``, ``reads`` (GET, HEAD, OPTIONS, TRACE), ``writes`` (all others);
- status codes: ``401``, ``401|403``, ``5xx``;
- a route, beginning with ``/`` or ``*``: ``/admin/*``, where ``*`` is any text and nothing else is special.

``!`` in front makes it an exception.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RequestRule", "is_reported"]

READS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
METHODS: Final = READS | {"POST", "PUT", "PATCH", "DELETE", "CONNECT", "QUERY"}
_GROUPS: Final = ("READS", "WRITES")
_STATUS: Final = re.compile(r"[1-5](?:\d\d|XX)")
_STATUS_LIKE: Final = re.compile(r"\d[\dX]*")


@dataclass(frozen=True)
class RequestRule:
    """One rule. What is None or empty is no condition.

    Attributes:
        text: as it was written, spaces tidied.
        exception: whether requests that it matches are not reported.
        methods: names of methods and groups, in upper case.
        statuses: in upper case, ``401`` or ``4XX``.
        route: for the whole route.
    """

    text: str
    exception: bool
    methods: frozenset[str]
    statuses: frozenset[str]
    route: re.Pattern[str] | None

    @classmethod
    def parse(cls, text: str) -> RequestRule:
        """Read one rule.

        Raises:
            ValueError: it cannot be read; the text says ``problem; fix``.

        >>> RequestRule.parse("GET|HEAD /admin/* 4xx").text
        'GET|HEAD /admin/* 4xx'
        """
        words = text.strip().removeprefix("!").split()
        exception = text.strip().startswith("!")
        found: dict[str, str] = {}
        for word in words:
            kind = _kind(word)
            if kind in found:
                raise ValueError(
                    f"{word!r} is a second {kind} in one rule; put a comma between rules, and | between "
                    "alternatives"
                )
            found[kind] = word
        if not found:
            raise ValueError("an empty rule; use * for every request")
        return cls(
            ("!" if exception else "") + " ".join(words),
            exception,
            frozenset(_alternatives(found.get("method"))),
            frozenset(_alternatives(found.get("status code"))),
            _pattern(found["route"]) if "route" in found else None,
        )

    def matches(self, method: str, route: str, status: int) -> bool:
        """Whether all conditions hold.

        Args:
            method: as the semantic conventions have it.
            route: the template, or the path where no route is known.
            status: of the response.
        """
        group = "READS" if method in READS else "WRITES"
        return (
            (not self.methods or method in self.methods or group in self.methods)
            and (not self.statuses or str(status) in self.statuses or f"{status // 100}XX" in self.statuses)
            and (self.route is None or self.route.fullmatch(route) is not None)
        )


def is_reported(rules: Iterable[RequestRule], method: str, route: str, status: int) -> bool:
    """Whether a rule matches and no exception does; arguments as for `RequestRule.matches`."""
    wanted = False
    for rule in rules:
        if rule.matches(method, route, status):
            if rule.exception:
                return False
            wanted = True
    return wanted


def _kind(word: str) -> str:
    if word.startswith(("/", "*")):
        return "route"
    parts = _alternatives(word)
    if all(_STATUS.fullmatch(part) for part in parts):
        return "status code"
    for part in parts:
        if part in METHODS or part in _GROUPS or _STATUS.fullmatch(part):
            continue
        if _STATUS_LIKE.fullmatch(part):
            raise ValueError(f"no status code: {part.lower()!r}; use for example 401 or 4xx")
        close = difflib.get_close_matches(part, (*METHODS, *_GROUPS), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"neither a method nor a status code: {part!r}; {hint}use for example writes, 401, GET /admin/*"
        )
    if any(_STATUS.fullmatch(part) for part in parts):
        raise ValueError(f"{word!r} mixes methods and status codes; put a space or a comma between them")
    return "method"


def _alternatives(word: str | None) -> list[str]:
    return [] if word is None else word.upper().split("|")


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", text)), re.DOTALL)
