"""How engines give out connections: every way to one goes through a single method, which is wrapped here."""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy.engine import Engine

__all__ = ["CheckoutHooks"]


class CheckoutHooks:
    """Wraps ``Engine.raw_connection``; a subclass says with what."""

    def __init__(self) -> None:
        self._patched: tuple[Any, Any] | None = None
        self._engines: Any = Engine

    def _wrap(self, original: Any) -> Any:
        """What is called in place of the method, with the engine."""
        raise NotImplementedError

    def install(self) -> None:
        """Wrap the method."""
        original: Any = Engine.raw_connection
        wrapped = functools.wraps(original)(self._wrap(original))
        self._engines.raw_connection = wrapped
        self._patched = (original, wrapped)

    def uninstall(self) -> None:
        """Put it back, unless somebody else has wrapped it since."""
        if self._patched is not None and vars(Engine).get("raw_connection") is self._patched[1]:
            self._engines.raw_connection = self._patched[0]
        self._patched = None
