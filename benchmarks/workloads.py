"""The work that is measured, as a service would do it; the same for every variant."""

from __future__ import annotations

import datetime as dt
import random
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy.orm import Session

from benchmarks.models import Attachment, Comment, Item, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

__all__ = ["EVENTS", "ITEMS", "TASKS", "Cost", "insert", "request"]

TASKS: Final = 2_000
"""Rows that updates choose from."""
ITEMS: Final = 2_000
"""Objects in one unit of work."""
EVENTS: Final = {"request": 3, "insert": ITEMS}
"""Changes, so events, that one execution of each workload makes."""
STATES: Final = ("open", "active", "blocked", "done")


class Cost(NamedTuple):
    """What one execution took, in nanoseconds."""

    elapsed: int
    """By the clock."""
    cpu: int
    """CPU time of the thread that executed it, without what other threads did meanwhile."""


def _now() -> Cost:
    return Cost(time.perf_counter_ns(), time.thread_time_ns())


def _since(started: Cost) -> Cost:
    return Cost(time.perf_counter_ns() - started.elapsed, time.thread_time_ns() - started.cpu)


def request(engine: Engine, seed: int) -> Callable[[int], Cost]:
    """One transaction: an insert, an update and a delete by primary key, in a session of its own.

    Returns a function that executes request number `n` (from 0, each once) and returns its `Cost`.
    """
    numbers = random.Random(seed)

    def execute(n: int) -> Cost:
        task_id = numbers.randint(1, TASKS)
        started = _now()
        now = dt.datetime.now(dt.UTC)
        with Session(engine) as session:
            task = session.get_one(Task, task_id)
            task.status = STATES[n % 4]
            task.assignee_id = n % 20
            task.revision += 1
            task.updated_at = now
            session.add(
                Comment(
                    task_id=task_id,
                    author_id=n % 20,
                    body="I looked into it: the second import fails when the file is empty.",
                    mentions=[n % 7, n % 11],
                    internal=False,
                    created_at=now,
                )
            )
            session.delete(session.get_one(Attachment, n + 1))
            session.commit()
        return _since(started)

    return execute


def insert(engine: Engine, seed: int) -> Callable[[int], Cost]:
    """One unit of work that inserts `ITEMS` objects.

    The time is that of adding, flushing and committing; the objects exist before it starts.
    Returns a function that executes insert number `n` and returns its `Cost`.
    """
    numbers = random.Random(seed)

    def execute(n: int) -> Cost:
        now = dt.datetime.now(dt.UTC)
        items = [
            Item(
                sku=f"SKU-{n:04}-{row:06}",
                name=f"Item number {row} of delivery {n}",
                quantity=numbers.randint(0, 500),
                price=Decimal(numbers.randint(100, 99_999)) / 100,
                properties={"colour": "blue", "weight": row % 50, "fragile": row % 9 == 0},
                active=True,
                created_at=now,
            )
            for row in range(ITEMS)
        ]
        with Session(engine) as session:
            started = _now()
            session.add_all(items)
            session.commit()
            return _since(started)

    return execute
