"""A pool of processes; each worker starts auditing by itself, before it begins or when it does."""

import multiprocessing
import os
import sys

from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task

import otel_activity

engine = create_engine(os.environ["DATABASE_URL"])
if __name__ != "__main__" and "import" in sys.argv:
    otel_activity.instrument()


def start() -> None:
    engine.dispose(close=False)
    otel_activity.instrument()


def work(number: int) -> None:
    with Session(engine) as session:
        session.add(Task(name=f"task {number}"))
        session.commit()


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2, initializer=None if "import" in sys.argv else start) as pool:
        pool.map(work, range(6))
        pool.close()
        pool.join()
