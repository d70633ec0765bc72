"""Interruptions (Ctrl-C, SystemExit, a time limit) wherever Python looks for signals."""

from __future__ import annotations

import dis
import signal
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import otel_activity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType

__all__ = ["TimeLimit", "interrupted"]


class TimeLimit(Exception):
    """Raised by a signal handler, as task queues do it: an `Exception` that is nobody's mistake."""


PACKAGE = Path(otel_activity.__file__).parent


@cache
def looks(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions before which Python looks for signals: behind calls, and where it loops."""
    found = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
    return frozenset(
        after.offset
        for before, after in pairwise(found)
        if before.opname.startswith(("CALL", "JUMP_BACKWARD"))
        and not before.opname.startswith("CALL_INTRINSIC")
    )


class Bell:
    """Interrupts this thread at the n-th of those places in some files."""

    def __init__(self, number: int, files: frozenset[str], error: type[BaseException]) -> None:
        self.left = number
        self.files = files
        self.error = error
        self.where = ""

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "call" or (event == "opcode" and frame.f_lasti in looks(frame.f_code)):
            self.left -= 1
            if self.left == 0:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}:{frame.f_lasti}"
                if self.error is TimeLimit:
                    signal.raise_signal(signal.SIGUSR1)
                raise self.error
        return self.trace


def interrupted(
    number: int, files: Iterable[str], error: type[BaseException], work: Callable[[], object]
) -> str:
    """Where the work was interrupted; empty when it has fewer such places than that.

    Args:
        number: of the place, from 1.
        files: of the package, that are looked at.
        error: what interrupts.
        work: is done in this thread.

    Raises:
        AssertionError: whoever called the work does not hear of the interruption.
    """
    bell = Bell(number, frozenset(str(PACKAGE / file) for file in files), error)
    before = sys.gettrace()
    handler = signal.signal(signal.SIGUSR1, _out_of_time)
    sys.settrace(bell.trace)
    try:
        work()
    except error:
        return bell.where
    finally:
        sys.settrace(before)
        signal.signal(signal.SIGUSR1, handler)
    assert not bell.where, f"{error.__name__} at {bell.where} is lost"
    return ""


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise TimeLimit
