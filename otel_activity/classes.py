"""Delivery classes of single events: which there are, and the rules that name them."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["DELIVERIES", "ClassRule", "Classes", "delivery_class"]

_logger: Final = logging.getLogger("otel_activity")

DELIVERIES: Final = ("best_effort", "durable", "strict")
"""The classes, from the cheapest to the safest."""
_MOST_REPORTED: Final = 100
"""Different lines about wrong names: an application may make them up."""


def delivery_class(name: object) -> str:
    """The name itself, if it is one of a class.

    Raises:
        ValueError: it is not; the text says ``problem; fix``.

    >>> delivery_class("strict")
    'strict'
    """
    if isinstance(name, str) and name in DELIVERIES:
        return name
    close = difflib.get_close_matches(str(name).lower(), DELIVERIES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"no delivery class: {name!r}; {hint}use one of {', '.join(DELIVERIES)}")


class ClassRule(NamedTuple):
    """One rule: what it names has this class.

    Attributes:
        pattern: of names, ``*`` and ``?``.
        delivery: the class.
    """

    pattern: str
    delivery: str

    @classmethod
    def parse(cls, text: str) -> ClassRule:
        """Read one rule.

        Raises:
            ValueError: it cannot be read; the text says ``problem; fix``.

        >>> ClassRule.parse("page.* = best_effort")
        ClassRule(pattern='page.*', delivery='best_effort')
        """
        pattern, mark, delivery = (part.strip() for part in text.partition("="))
        if not pattern or not mark:
            raise ValueError(
                f"{text.strip()!r} is no rule; use for example Invoice=strict,page.*=best_effort"
            )
        return cls(pattern, delivery_class(delivery.lower()))

    def __str__(self) -> str:
        return f"{self.pattern}={self.delivery}"


class Classes:
    """Says which class an event has: what the code asks for, else the first rule that names it, else the
    default.

    Args:
        default: class of everything else.
        rules: as texts that `ClassRule.parse` reads.
        deviates: called before an event has another class than the default, with that class.

    >>> classes = Classes("durable", ["Invoice=strict", "page.*=best_effort"])
    >>> classes.of(None, ["page.view"]), classes.of("strict", ["page.view"]), classes.of(None, ["Customer"])
    ('best_effort', 'strict', None)
    """

    def __init__(
        self,
        default: str = "durable",
        rules: Iterable[str] = (),
        deviates: Callable[[str], object] | None = None,
    ) -> None:
        self.default = default
        self._rules = tuple(ClassRule.parse(rule) for rule in rules)
        self._deviates = deviates
        self._reported: set[str] = set()
        self._matched: set[str] = set()

    @property
    def unmatched(self) -> list[str]:
        """Patterns of rules by which nothing got its class yet."""
        return [rule.pattern for rule in self._rules if rule.pattern not in self._matched]

    def of(self, asked: str | None, names: Collection[str]) -> str | None:
        """The class of an event; None for the default.

        Args:
            asked: by the code.
            names: that rules may know it by.
        """
        delivery = asked or self._named(names)
        if delivery is None or delivery == self.default:
            return None
        if self._deviates is not None:
            self._deviates(delivery)
        return delivery

    def asked(self, delivery: str | None, where: str) -> str | None:
        """What a call asks for, None if that is no class: then one line says so, once."""
        if delivery is None or delivery in DELIVERIES:
            return delivery
        try:
            delivery_class(delivery)
        except ValueError as error:
            line = f"{where}: {error}"
            if line not in self._reported and len(self._reported) < _MOST_REPORTED:
                self._reported.add(line)
                _logger.error("otel_activity: %s", line)
        return None

    def _named(self, names: Collection[str]) -> str | None:
        for rule in self._rules:
            if any(fnmatch.fnmatchcase(name, rule.pattern) for name in names):
                self._matched.add(rule.pattern)
                return rule.delivery
        return None
