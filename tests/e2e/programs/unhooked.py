"""A server like uWSGI, which forks its workers in C: no hook that anybody registered for forks is called.

Three workers commit in two threads each while the master does, and end as uWSGI's do, by the exit handlers.
The third does nothing at all.
"""

import os
import sys
import threading

os.register_at_fork = lambda **hooks: None  # before anybody registers one

from sqlalchemy import create_engine  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402
from tasks import Base, Task  # noqa: E402

import otel_activity  # noqa: E402

otel_activity.instrument()
engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)


def work() -> None:
    for number in range(20):
        with Session(engine) as session:
            session.add(Task(name=f"{os.getpid()} {number}"))
            session.commit()


def serve() -> None:
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


work()
children = []
for worker in range(3):
    child = os.fork()
    if child == 0:
        engine.dispose(close=False)
        if worker < 2:
            serve()
        sys.exit()
    children.append(child)
work()
for child in children:
    assert os.waitpid(child, 0)[1] == 0
work()
