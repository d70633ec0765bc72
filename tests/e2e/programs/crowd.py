"""Four threads commit until the program is killed, each on a connection of its own; errors are printed."""

import os
import threading

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from tasks import Task

engine = create_engine(os.environ["DATABASE_URL"], pool_size=4)
THREADS = 4
ready = threading.Barrier(THREADS + 1)


def work() -> None:
    for number in range(1 << 30):
        try:
            with Session(engine) as session:
                task = Task(name=f"task {number}")
                session.add(task)
                session.flush()
                task.name = "renamed"
                session.commit()
        except DBAPIError as error:
            # At once: the lines of threads that print get mixed.
            os.write(1, f"program failed {type(error.orig).__name__}\n".encode())
        if number == 0:
            ready.wait()


for _ in range(THREADS):
    threading.Thread(target=work, daemon=True).start()
ready.wait()
print("program runs", flush=True)
threading.Event().wait()
