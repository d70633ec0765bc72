"""How long the first of a queue has been waiting, to the second, without a clock for each entry."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ages"]

_GRAIN: Final = 1.0
"""Seconds between two marks: what an age may be too high by."""


class Ages:
    """Marks when which entry came. Written under the queue's lock, read without it.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque()

    def came(self, number: int, left: int) -> None:
        """Entry `number` (from 1, in order) came; `left` entries have left before."""
        marks, now = self._marks, self._clock()
        while len(marks) > 1 and marks[1][0] <= left + 1:
            marks.popleft()
        if not marks or now - marks[-1][1] >= _GRAIN:
            marks.append((number, now))

    def oldest(self, left: int) -> float:
        """Seconds that the oldest entry, of number ``left + 1``, has been waiting."""
        came = None
        for number, moment in tuple(self._marks):
            if number > left + 1 and came is not None:
                break
            came = moment
        return 0.0 if came is None else self._clock() - came
