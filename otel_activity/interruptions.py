"""Interruptions that look like errors: a signal handler may raise any exception, wherever it interrupts."""

from __future__ import annotations

import functools
import signal
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["pass_on"]


def pass_on(error: BaseException) -> None:
    """Raise an exception again that a signal handler raised; call it wherever all of them are caught.

    Time limits of tasks are such: Celery's ``SoftTimeLimitExceeded``, RQ's ``JobTimeoutException``, a
    ``TimeoutError`` out of a handler for ``SIGALRM``. They mean the application, not what they interrupt: who
    takes one for a mistake of its own and goes on leaves a task that runs beyond its limit, and that commits
    without the change whose capture was interrupted.

    Args:
        error: the exception being handled.

    Raises:
        BaseException: that exception.
    """
    first = error.__traceback__
    # The first frame is the one that caught it. Most errors have no other: an attribute that is not there,
    # which some drivers are asked for before each statement. A handler would stand behind it.
    trace = None if first is None else first.tb_next
    if trace is None or threading.current_thread() is not threading.main_thread():
        return  # handlers run there alone
    found: set[CodeType] = set()
    while trace is not None:
        found.add(trace.tb_frame.f_code)
        trace = trace.tb_next
    if any(_code(signal.getsignal(number)) in found for number in _SIGNALS):
        raise error


_SIGNALS: Final = tuple(map(int, signal.valid_signals()))  # the call costs more than all the rest


def _code(handler: Any) -> CodeType | None:
    """The code of a signal handler that is written in Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    for place in (handler, type(handler).__call__ if callable(handler) else None):
        code = getattr(getattr(place, "__func__", place), "__code__", None)
        if code is not None:
            return code  # type: ignore[no-any-return]  # of whatever that is, `__code__` is one
    return None
