"""Celery tasks that each add a row; some roll back. ``python fields.py N`` enqueues N of them."""

import os
import sys

from celery import Celery
from celery.signals import worker_process_init
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task

broker = os.environ["BROKER"]
app = Celery("fields", broker=broker)
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=1)
if broker == "filesystem://":
    box = os.environ["BOX"]
    app.conf.broker_transport_options = {
        "data_folder_in": box,
        "data_folder_out": box,
        "control_folder": box,
        "polling_interval": 0.05,
    }
engine = create_engine(os.environ["DATABASE_URL"])


@worker_process_init.connect
def forget_connections(**_: object) -> None:
    engine.dispose(close=False)


@app.task(name="plough")
def plough(number: int) -> None:
    with Session(engine) as session:
        task = Task(name=f"field {number}")
        session.add(task)
        session.flush()
        task.name = "renamed"
        if number % 7 == 0:
            session.flush()
            session.rollback()
        else:
            session.commit()


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    for number in range(int(sys.argv[1])):
        plough.delay(number)
    print("program done", flush=True)
