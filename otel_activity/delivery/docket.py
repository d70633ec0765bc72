"""Questions to the database: units whose COMMIT nobody saw the end of, until somebody knows."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from otel_activity.delivery.backoff import Backoff
from otel_activity.delivery.lane import log_safely
from otel_activity.errors import ActivityError
from otel_activity.events import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.delivery.holding import Held
    from otel_activity.ports import Resolver

__all__ = ["Docket"]

_BATCH: Final = 256
"""Units asked about at once."""


class Docket:
    """Asks a `ports.Resolver` in a thread of its own, and passes each answer on.

    Args:
        resolver: knows whom to ask.
        decide: called with each answer but "in progress", in the thread of the docket.
        backoff: between two rounds while a question is open.
    """

    def __init__(
        self, resolver: Resolver, decide: Callable[[Held, Verdict], None], *, backoff: Backoff | None = None
    ) -> None:
        self._resolver = resolver
        self._decide = decide
        self._backoff = backoff or Backoff()
        self._reset()

    def _reset(self) -> None:
        # Re-entrant, because a signal handler may interrupt its owner.
        self._lock = threading.RLock()
        self._open: list[Held] = []
        self._empty = threading.Event()
        self._empty.set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.trouble: str | None = None

    def after_fork(self) -> None:
        """In a forked child: the questions are the parent's."""
        self._reset()
        self._resolver.after_fork()

    @property
    def units(self) -> int:
        """Number of open questions."""
        return len(self._open)

    def ask(self, held: Held) -> bool:
        """Put a question; False when there is no thread to ask it any more (the interpreter ends)."""
        with self._lock:
            if self._stop.is_set():
                return False
            if held not in self._open:  # it is if whoever asked was interrupted, and asks again
                self._open.append(held)
            self._empty.clear()
            if self._thread is not None:
                return True
            thread = threading.Thread(target=self._run, name="otel-activity-resolver", daemon=True)
            try:
                self._thread = thread
                thread.start()
            except RuntimeError:
                self._thread = None
            except BaseException:
                self._thread = None  # interrupted; if the thread runs nevertheless, it ends by itself
                raise
            else:
                return True
        self.close(0.0)
        return False

    def wait(self, deadline: float) -> bool:
        """Whether every question has its answer, until `deadline` (monotonic seconds)."""
        return self._empty.wait(max(0.0, deadline - time.monotonic()))

    def close(self, deadline: float) -> list[Held]:
        """Ask no more; the questions that are open still."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            left, self._open = self._open, []
            self._empty.set()
        return left

    def _run(self) -> None:
        delays = self._backoff.delays()
        me = threading.current_thread()
        while not self._stop.is_set() and self._thread is me:
            with self._lock:
                asked = self._open[:_BATCH]
                if not asked:
                    self._thread = None
                    return
            if self._round(asked):
                delays = self._backoff.delays()
            else:
                self._stop.wait(next(delays))

    def _round(self, asked: list[Held]) -> bool:
        """Ask once. Whether there was any answer."""
        try:
            verdicts = self._resolver.resolve([held.proof for held in asked if held.proof is not None])
        except ActivityError as error:
            self._failed(str(error))
            return False
        except Exception as error:  # noqa: BLE001 - a bug there must not decide anything here
            self._failed(f"{type(error).__name__} in the resolver")
            log_safely(logging.DEBUG, "otel_activity: the resolver raised", exc_info=True)
            return False
        self.trouble = None
        answered = False
        for held, verdict in zip(asked, verdicts, strict=False):
            if verdict is not Verdict.IN_PROGRESS and self._answered(held):
                answered = True
                self._decide(held, verdict)
        with self._lock:  # those that go on come after those that were not asked yet
            again = {id(held) for held in asked}
            self._open.sort(key=lambda held: id(held) in again)
            if not self._open:
                self._empty.set()
        return answered

    def _answered(self, held: Held) -> bool:
        """Strike a question off; False when it was taken back meanwhile."""
        with self._lock:
            if held not in self._open:
                return False
            self._open.remove(held)
            return True

    def _failed(self, trouble: str) -> None:
        if trouble != self.trouble:
            log_safely(
                logging.WARNING,
                "otel_activity: %d units wait, because nobody could be asked what became of them: %s",
                len(self._open),
                trouble,
            )
        self.trouble = trouble
