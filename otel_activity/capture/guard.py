"""Hooks run guarded: an error of ours is logged and counted, and never reaches the application."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

from otel_activity.errors import without_messages
from otel_activity.interruptions import pass_on

__all__ = ["internal_error"]

_logger: Final = logging.getLogger("otel_activity")
_WINDOW: Final = 60.0
_last: dict[str, float] = {}


def internal_error(where: str) -> None:
    """Log the exception being handled, at most once a minute for each place. Call from ``except``.

    Raises:
        BaseException: that exception, if it is none of ours: see `interruptions.pass_on`.
    """
    error = sys.exc_info()[1]
    if error is not None:
        pass_on(error)
    now = time.monotonic()
    if now - _last.get(where, -_WINDOW) < _WINDOW:
        return
    _last[where] = now
    _logger.error(
        "otel_activity: internal error in %s; the application is not affected, but an event "
        "may be missing. Please report it\n%s",
        where,
        without_messages(error),
    )
