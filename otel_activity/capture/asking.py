"""No connection is given out to answer who acts: that is asked within COMMIT, which would wait for it."""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy.engine import Engine

from otel_activity.context import NotLoaded, is_asking

__all__ = ["AskingHooks"]


class AskingHooks:
    """Refuses a connection while an application's user object is read.

    A property of it may load an expired row, in a session that has no connection yet. Where the pool is empty
    it would wait for one that the transaction itself holds, until the pool gives up.
    """

    def __init__(self) -> None:
        self._patched: tuple[Any, Any] | None = None
        self._engines: Any = Engine

    def install(self) -> None:
        """Wrap the method that every way to a connection goes through."""
        original: Any = Engine.raw_connection

        @functools.wraps(original)
        def raw_connection(engine: Any) -> Any:
            if is_asking():
                raise NotLoaded("who acts is asked within COMMIT, and reading it would send SQL")
            return original(engine)

        self._engines.raw_connection = raw_connection
        self._patched = (original, raw_connection)

    def uninstall(self) -> None:
        """Put it back, unless somebody else has wrapped it since."""
        if self._patched is not None and vars(Engine).get("raw_connection") is self._patched[1]:
            self._engines.raw_connection = self._patched[0]
        self._patched = None
