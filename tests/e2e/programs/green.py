"""Greenlets under gevent whose COMMITs are cut short by `gevent.Timeout`, wherever they wait.

Prints how many there were. The first argument is the driver, the others are settings.
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402 - gevent comes first
import random  # noqa: E402
import sys  # noqa: E402
from contextlib import suppress  # noqa: E402

import gevent  # noqa: E402
import psycopg2.extensions  # noqa: E402
from gevent.socket import wait_read, wait_write  # noqa: E402
from greenlet import getcurrent, settrace  # noqa: E402
from sqlalchemy import create_engine  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402
from tasks import Task  # noqa: E402

import otel_activity  # noqa: E402

SEED = 20261128
PATIENCE = 30.0


def wait_for_psycopg2(connection, timeout=None):
    """As psycogreen does: psycopg2 waits as gevent does."""
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        if state == psycopg2.extensions.POLL_READ:
            wait_read(connection.fileno(), timeout=timeout)
        else:
            wait_write(connection.fileno(), timeout=timeout)


psycopg2.extensions.set_wait_callback(wait_for_psycopg2)


def strike_at(number):
    """A timeout that is over when this greenlet waits for the n-th time; what says whether it was."""
    me, timeout = getcurrent(), gevent.Timeout(PATIENCE)
    left = [number]

    def trace(event, greenlets):
        if event == "switch" and greenlets[0] is me:
            left[0] -= 1
            if left[0] == 0:
                gevent.get_hub().loop.run_callback(me.throw, timeout)

    settrace(trace)
    return timeout, left


def write(session, name):
    session.add_all([Task(name=f"{name} {each}") for each in "ab"])
    session.flush()
    session.commit()


def leaves(engine, name, strike):
    with Session(engine) as session:
        session.connection()
        return strike(session, name)


def commits_again(engine, name, strike):
    with Session(engine) as session:
        session.connection()
        struck = strike(session, name)
        with suppress(SQLAlchemyError):
            session.commit()
        with suppress(SQLAlchemyError):
            session.rollback()
            session.add(Task(name=f"{name} afterwards"))
            session.commit()
    return struck


def struck_at(number):
    def strike(session, name):
        timeout, left = strike_at(number)
        try:
            write(session, name)
        except gevent.Timeout as error:
            if error is not timeout:
                raise
        finally:
            settrace(None)
        return left[0] <= 0

    return strike


def struck_after(seconds):
    def strike(session, name):
        with gevent.Timeout(seconds, False):
            write(session, name)

    return strike


driver, *options = sys.argv[1:]
otel_activity.instrument(**dict(option.split("=", 1) for option in options))
url = os.environ["DATABASE_URL"].replace("postgresql://", f"postgresql+{driver}://")
engine = create_engine(url, pool_size=8)
with Session(engine) as first:
    first.connection()
    write(first, "before")
count = 0
for habit in (leaves, commits_again):
    number = 1
    while habit(engine, f"{habit.__name__} {number}", struck_at(number)):
        number += 1
    count += number
chance = random.Random(SEED)
for round_ in range(20):
    crowd = []
    for each in range(8):
        habit = (leaves, commits_again)[each % 2]
        strike = struck_after(chance.uniform(0.0001, 0.02))
        crowd.append(gevent.spawn(habit, engine, f"crowd {round_} {each}", strike))
    gevent.joinall(crowd, timeout=PATIENCE, raise_error=True)
    assert all(greenlet.dead for greenlet in crowd)
engine.dispose()
flushed = otel_activity.flush_queue(PATIENCE)
print("struck", count, "flushed", flushed, "ended", otel_activity.shutdown(PATIENCE))
