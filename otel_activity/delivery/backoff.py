"""Whether an exporter may be tried, and how long to wait before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CLOSED", "HALF_OPEN", "OPEN", "Backoff", "Breaker"]

CLOSED: Final = "closed"
"""It works, or failed so rarely that nothing is concluded from it."""
OPEN: Final = "open"
"""It failed again and again: nothing is sent until the pause is over."""
HALF_OPEN: Final = "half-open"
"""The pause is over, and one batch probes it."""
_random: Final = random.SystemRandom().random
"""Not the module's own: an application may have seeded that, and forked workers share its state."""
_TRIPS: Final = 3
"""Failures in a row that open a breaker; fewer are a hiccup, as of a connection that a server closed."""


@dataclass(frozen=True)
class Backoff:
    """Exponential, with jitter so that a fleet does not return to a mended store at the same instant.

    Attributes:
        first: seconds before the second attempt.
        most: longest wait, in seconds; short enough that delivery resumes soon after an outage.
        factor: growth from one wait to the next.
        jitter: share of each wait that is random (0 to 1).
    """

    first: float = 0.1
    most: float = 5.0
    factor: float = 2.0
    jitter: float = 0.5

    def delays(self) -> Iterator[float]:
        """Seconds to wait, without end."""
        wait = self.first
        while True:
            yield wait * (1 - self.jitter * _random())
            wait = min(self.most, wait * self.factor)


class Breaker:
    """The circuit breaker of one exporter; used by the thread that exports, read by any.

    It outlives the batch: while it is open, whatever comes next is a probe, after a pause that has grown with
    every failure since the last success. One success closes it, and what waits goes out without a pause.

    Args:
        backoff: the pauses.
        trips: failures in a row that open it.

    Attributes:
        state: `CLOSED`, `OPEN` or `HALF_OPEN`.
        failures: in a row, until now.
        opened: how often it has opened.
    """

    def __init__(self, backoff: Backoff | None = None, *, trips: int = _TRIPS) -> None:
        self._backoff = backoff or Backoff()
        self._trips = trips
        self._reset()

    def _reset(self) -> None:
        self.state = CLOSED
        self.failures = self.opened = 0
        self._delays = self._backoff.delays()

    def after_fork(self) -> None:
        """In a forked child: its exporter was not tried yet."""
        self._reset()

    def trying(self) -> None:
        """An attempt begins."""
        if self.state == OPEN:
            self.state = HALF_OPEN

    def succeeded(self) -> None:
        """The attempt was a success."""
        if self.failures:
            self.state, self.failures = CLOSED, 0
            self._delays = self._backoff.delays()

    def failed(self) -> float:
        """The attempt was none; seconds until the next one may begin."""
        self.failures += 1
        if self.state == HALF_OPEN:
            self.state = OPEN
        elif self.state == CLOSED and self.failures >= self._trips:
            self.state = OPEN
            self.opened += 1
        return next(self._delays)
