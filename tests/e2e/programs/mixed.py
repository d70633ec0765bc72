"""Forks children that commit transactions of all classes until they are killed: seed, number of kills.

The last child is not killed: it commits 20 transactions, delivers, and prints its counters by class.
"""

import json
import os
import random
import signal
import sys
import threading
import time

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_activity
from otel_activity import audited, log_user_action


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


def work(rounds: int = 1 << 30) -> None:
    for number in range(rounds):
        with Session(engine) as session:
            invoice, visit, task = Invoice(), Visit(), Task(name="new")
            session.add_all([invoice, visit, task])
            session.flush()
            task.name = "renamed"
            log_user_action("order.pay", entity_id=invoice.id, session=session, delivery="strict")
            if number % 5 == 4:
                session.rollback()
            else:
                session.commit()


engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
engine.dispose()
rng = random.Random(int(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        try:
            threading.Thread(target=work).start()
            work()
        finally:
            os._exit(1)
    time.sleep(rng.uniform(0.02, 0.15))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
child = os.fork()
if child == 0:
    try:
        work(20)
        assert otel_activity.flush_queue(30)
        print(json.dumps(otel_activity.get_queue_metrics()["deliveries"]), flush=True)
    finally:
        os._exit(0)
os.waitpid(child, 0)
print("program done", flush=True)
