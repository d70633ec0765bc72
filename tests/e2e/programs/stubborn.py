"""Commits in two threads until it is told to end, whatever happens to the database meanwhile."""

import os
import signal
import threading
import time

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from tasks import Base, Task


def work() -> None:
    while not end.is_set():
        try:
            with Session(engine) as session:
                task = Task(name="new")
                session.add(task)
                session.flush()
                task.name = "renamed"
                session.commit()
        except DBAPIError:
            time.sleep(0.05)


end = threading.Event()
engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
signal.signal(signal.SIGUSR1, lambda *_: end.set())
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
print("program runs", flush=True)
for thread in threads:
    thread.join()
print("program done", flush=True)
