"""Kills a child at each line of the delivery that a transaction runs through, in whichever thread.

A scout lists the lines: what it does not run through is no point, and a line that is added is one more. Then
each child works as the scout did, and is dead the first time it comes to its line.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task

import otel_activity
from otel_activity import delivery

WHERE = str(Path(delivery.__file__).parent)
AT_ONCE = 4


reached: Callable[[str, int], None] | None = None


def watch(frame: Any, event: str, _: Any) -> Any:
    """A trace function: tells `reached` of each line of the delivery."""
    if reached is None or not frame.f_code.co_filename.startswith(WHERE):
        return None
    if event == "line":
        reached(frame.f_code.co_filename, frame.f_lineno)
    return watch


def work() -> None:
    """Two transactions that commit, one that is rolled back, and all that follows from them."""
    for end in ("commit", "rollback", "commit"):
        with Session(engine) as session:
            first, second = Task(name="one"), Task(name="other")
            session.add_all([first, second])
            session.flush()
            second.name = "renamed"
            session.flush()
            getattr(session, end)()
    otel_activity.flush_queue(10)


def child(tell: Callable[[str, int], None], then: Callable[[], None] = lambda: None) -> int:
    """A process that works under the eyes of `tell`; its id."""
    global reached
    pid = os.fork()
    if pid == 0:
        try:
            reached = tell
            sys.settrace(watch)
            work()
            sys.settrace(None)
            reached = None
            then()
        finally:
            os._exit(0)
    return pid


def scouted() -> list[tuple[str, int]]:
    """The lines that a child runs through, after another one died and left it something."""
    here, there = os.pipe()
    seen: set[tuple[str, int]] = set()
    pid = child(lambda file, line: seen.add((file, line)), lambda: say(there, seen))
    os.close(there)
    with os.fdopen(here) as pipe:
        found = json.load(pipe)
    os.waitpid(pid, 0)
    return [(file, line) for file, line in sorted(found)]


def say(descriptor: int, seen: set[tuple[str, int]]) -> None:
    """Pass the lines on."""
    with os.fdopen(descriptor, "w") as pipe:
        json.dump(sorted(seen), pipe)


def dies_at(point: tuple[str, int]) -> Callable[[str, int], None]:
    """Ends this process by SIGKILL when it comes to a line."""

    def tell(file: str, line: int) -> None:
        if (file, line) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return tell


threading.settrace(watch)  # for the threads that a child starts
engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
engine.dispose()
os.waitpid(child(lambda *_: os.kill(os.getpid(), signal.SIGKILL)), 0)
points = scouted()
killed = 0
alive: set[int] = set()
for point in points:
    alive.add(child(dies_at(point)))
    while len(alive) >= AT_ONCE or (point == points[-1] and alive):
        pid, status = os.wait()
        alive.discard(pid)
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
print(json.dumps({"points": len(points), "killed": killed}), flush=True)
print("program done", flush=True)
