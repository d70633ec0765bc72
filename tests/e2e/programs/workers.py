"""A pool of processes; each worker starts auditing by itself, before it begins or when it does."""

import multiprocessing
import os
import sys

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_activity


class Base(DeclarativeBase):
    pass


class Task(Base):
    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


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
