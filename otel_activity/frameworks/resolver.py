"""The application's own function that says who acts: loaded late, called at most so long, never trusted."""

from __future__ import annotations

import contextvars
import importlib
import inspect
import os
import queue
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from otel_activity.actors import Actor, is_id
from otel_activity.frameworks.users import identify

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Resolver"]

_STUCK: Final = 4
"""Calls that may be stuck at a time; further ones are refused, so that a dead resolver costs no more."""
_IDLE: Final = 8
"""Threads that are kept."""

_asking: ContextVar[bool] = ContextVar("otel_activity_asking", default=False)


class Resolver:
    """A function by its path, ``module.name:function``.

    It is imported when it is first needed, because its module may be the application, which is not to be
    imported before its time.

    Args:
        path: the function.
        timeout: seconds that one call may take. The calls are made in threads of their own, in a copy of the
            caller's context variables. 0 calls it directly, however long it takes: for a function that reads
            `threading.local`.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._function: Callable[[Any], Any] | None = None
        self._calls = _BoundedCalls(timeout) if timeout > 0 else None

    def ask(self, native: Any) -> Actor | None:
        """Who acts in a request; None if the function does not know.

        Raises:
            TimeoutError: it takes too long, or earlier calls still do.
            TypeError: the answer is no `Actor`, id or None.
            RecursionError: it was asked while it was asking.
            Exception: whatever it raises, and whatever importing it raises.
        """
        if _asking.get():
            raise RecursionError(f"{self._path} commits a transaction of its own")
        token = _asking.set(True)
        try:
            if self._function is None:
                self._function = _load(self._path)
            call = self._calls
            answer = self._function(native) if call is None else call(self._function, native)
        finally:
            _asking.reset(token)
        if inspect.iscoroutine(answer):
            answer.close()  # never awaited, and that is ours to say
        if answer is not None and not isinstance(answer, Actor) and not is_id(answer):
            raise TypeError(f"{self._path} must return an Actor, an id or None, not {type(answer).__name__}")
        return identify(answer)


def _load(path: str) -> Callable[[Any], Any]:
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{path} is not a function")
    return found  # type: ignore[no-any-return]  # what it returns is checked at each call


class _Job:
    """One call; `done` is released when `answer` or `error` is there."""

    def __init__(self, function: Callable[[Any], Any], argument: Any) -> None:
        self.function = function
        self.argument = argument
        self.context = contextvars.copy_context()
        self.answer: Any = None
        self.error: BaseException | None = None
        self.finished = False
        self.abandoned = False
        self.done = threading.Lock()
        self.done.acquire()


class _BoundedCalls:
    """Calls a function in daemon threads (those of `concurrent.futures` would hold up the exit)."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._start_over()

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[_Job]] = []
        self._stuck = 0

    def __call__(self, function: Callable[[Any], Any], argument: Any) -> Any:
        if self._pid != os.getpid():  # forked: the threads stayed behind
            self._start_over()
        if self._stuck >= _STUCK:
            raise TimeoutError(f"{self._stuck} calls are still running")
        job = _Job(function, argument)
        self._worker().put(job)
        if not job.done.acquire(timeout=self._timeout):
            self._abandon(job)
        if isinstance(job.error, Exception):
            raise job.error
        if job.error is not None:  # SystemExit in its thread is not meant for ours
            raise RuntimeError(f"it raised {type(job.error).__name__}") from job.error
        return job.answer

    def _worker(self) -> queue.SimpleQueue[_Job]:
        try:
            return self._idle.pop()
        except IndexError:
            inbox: queue.SimpleQueue[_Job] = queue.SimpleQueue()
            threading.Thread(
                target=self._run, args=(inbox,), name="otel-activity-resolver", daemon=True
            ).start()
            return inbox

    def _abandon(self, job: _Job) -> None:
        with self._lock:
            if not job.finished:
                job.abandoned = True
                self._stuck += 1
                raise TimeoutError(f"no answer within {self._timeout:g} s")

    def _run(self, inbox: queue.SimpleQueue[_Job]) -> None:
        while True:
            job = inbox.get()
            try:
                job.answer = job.context.run(job.function, job.argument)
            except BaseException as error:  # noqa: BLE001 - the caller's to report
                job.error = error
            keep = len(self._idle) < _IDLE
            with self._lock:
                job.finished = True
                self._stuck -= job.abandoned
                if keep:
                    self._idle.append(inbox)
            job.done.release()
            del job  # an idle thread holds no request
            if not keep:
                return
