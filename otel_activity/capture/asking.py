"""No connection is given out to answer who acts: that is asked within COMMIT, which would wait for it."""

from __future__ import annotations

from typing import Any

from otel_activity.capture.checkout import CheckoutHooks
from otel_activity.context import NotLoaded, is_asking

__all__ = ["AskingHooks"]


class AskingHooks(CheckoutHooks):
    """Refuses a connection while an application's user object is read.

    A property of it may load an expired row, in a session that has no connection yet. Where the pool is empty
    it would wait for one that the transaction itself holds, until the pool gives up.
    """

    def _wrap(self, original: Any) -> Any:
        def raw_connection(engine: Any) -> Any:
            if is_asking():
                raise NotLoaded("who acts is asked within COMMIT, and reading it would send SQL")
            return original(engine)

        return raw_connection
