"""Money that is strict, visits that are best effort, orders that are as the settings say, in one transaction.

Arguments: how often to commit; then ``before`` or ``after``: the program kills itself just before or just
after the COMMIT of that round has reached the server.
"""

import os
import signal
import sys
from typing import Any

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from otel_activity import audited, log_user_action
from otel_activity.postgres import outbox


class Base(DeclarativeBase):
    pass


@audited(delivery="strict")
class Invoice(Base):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(primary_key=True)


@audited(delivery="best_effort")
class Visit(Base):
    __tablename__ = "visit"
    id: Mapped[int] = mapped_column(primary_key=True)


class Task(Base):
    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


rounds = int(sys.argv[1])
moment = sys.argv[2] if len(sys.argv) > 2 else ""
engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
commits = 0
send = psycopg.Connection.commit
both = outbox._insert_and_commit


def commit(connection: Any) -> None:
    """COMMIT, and perhaps the end of this process."""
    if moment == "before" and commits == rounds:
        os.kill(os.getpid(), signal.SIGKILL)
    send(connection)
    if moment == "after" and commits == rounds:
        os.kill(os.getpid(), signal.SIGKILL)


def insert_and_commit(*arguments: Any) -> None:
    """The events of a strict transaction together with its COMMIT, and perhaps the end before it."""
    if moment == "before" and commits == rounds:
        os.kill(os.getpid(), signal.SIGKILL)
    both(*arguments)


psycopg.Connection.commit = commit  # type: ignore[method-assign]
outbox._insert_and_commit = insert_and_commit
print("program runs", flush=True)
for number in range(1, rounds + 1):
    with Session(engine) as session:
        invoice, visit, task = Invoice(), Visit(), Task(name="new")
        session.add_all([invoice, visit, task])
        session.flush()
        task.name = "renamed"
        log_user_action("order.pay", entity_id=invoice.id, session=session, delivery="strict")
        if number % 5 == 4:
            session.rollback()
        else:
            commits = number
            session.commit()
print("program done", flush=True)
