"""Interruptions that look like errors: a signal handler may raise any exception, wherever it interrupts."""

from __future__ import annotations

import functools
import signal
import threading
from typing import TYPE_CHECKING, Any

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
    if threading.current_thread() is not threading.main_thread():
        return  # handlers run there alone
    handlers = _handlers()
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            raise error
        trace = trace.tb_next


def _handlers() -> set[CodeType]:
    """The code of all signal handlers that are written in Python."""
    found = (_code(signal.getsignal(number)) for number in signal.valid_signals())
    return {code for code in found if code is not None}


def _code(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    for place in (handler, type(handler).__call__ if callable(handler) else None):
        code = getattr(getattr(place, "__func__", place), "__code__", None)
        if code is not None:
            return code  # type: ignore[no-any-return]  # of whatever that is, `__code__` is one
    return None
