"""The worker's side: ``celery --app order_desk.jobs worker``."""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_init

from .models import Order, Session, Step, engine

__all__ = ["app", "bill", "pack", "restock", "ship"]

app = Celery("order_desk", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))
app.conf.task_ignore_result = True


class CarrierBusy(Exception):
    """Try again later."""


@worker_process_init.connect
def forget_connections(**_: Any) -> None:
    """A worker process must not use its parent's connections."""
    engine.dispose(close=False)


def _step(key: int, name: str) -> None:
    with Session.begin() as session:
        order = session.get_one(Order, key)
        order.status = name
        session.add(Step(order_id=key, owner=order.owner, name=name))


@app.task(bind=True, autoretry_for=(CarrierBusy,), default_retry_delay=0)
def pack(task: Any, key: int) -> None:
    """Every fifth order fails the first time, after it was written: that is rolled back."""
    with Session.begin() as session:
        order = session.get_one(Order, key)
        order.status = "packed"
        session.add(Step(order_id=key, owner=order.owner, name="packed"))
        session.flush()
        if key % 5 == 0 and task.request.retries == 0:
            raise CarrierBusy


@app.task
def ship(key: int) -> None:
    """Enqueues the next task by itself."""
    _step(key, "shipped")
    bill.delay(key)


@app.task
def bill(key: int) -> None:
    """The last step."""
    _step(key, "billed")


@app.task
def restock() -> None:
    """Nobody asks for it: for a schedule (``celery beat``), or ``celery --app order_desk.jobs call``."""
    with Session.begin() as session:
        session.add(Step(owner="system", name="restocked"))
