"""Loses events, because its bounds are small and the store is away, and kills itself at a known moment.

Arguments: ``queue``: when the store is back and has what was not lost. ``journal``: while the store is away,
and then ``at once``, with the first loss, or ``later``, when all that is lost has been counted.
"""

import os
import signal
import sys
import time
from typing import Any

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task

import otel_activity


def commit() -> None:
    with Session(engine) as session:
        session.add(Task(name="task"))
        session.commit()


def postgres() -> dict[str, Any]:
    """What is on the way to the store."""
    found: dict[str, Any] = otel_activity.get_queue_metrics()["exporters"]["postgres"]
    return found


def rename(before: str, after: str) -> None:
    """The store's tables go away, or come back."""
    with psycopg.connect(os.environ["OTEL_ACTIVITY_POSTGRES_DSN"], autocommit=True) as connection:
        connection.execute(f"ALTER SCHEMA {before} RENAME TO {after}")


engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
commit()
while not postgres()["confirmed"]:
    time.sleep(0.01)
rename("activity", "elsewhere")
lost = 1 if "at once" in sys.argv else 20
while otel_activity.get_queue_metrics()["dropped"] < lost:
    commit()
    if "queue" in sys.argv:
        time.sleep(0.12)  # events get their places before there is no room for them
if "queue" in sys.argv:
    rename("elsewhere", "activity")
    while postgres()["trouble"]:
        time.sleep(0.01)
    commit()
    while postgres()["pending"] or otel_activity.get_queue_metrics()["waiting"]:
        time.sleep(0.01)
elif "later" in sys.argv:
    time.sleep(0.5)
print("program dies", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
