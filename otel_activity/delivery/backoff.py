"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Backoff"]


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
            yield wait * (1 - self.jitter * random.random())
            wait = min(self.most, wait * self.factor)
