"""Forks children that commit until they are killed, one after the other: seed, number of kills.

Every second one has committed something by then, however slow the machine is.
"""

import os
import random
import select
import signal
import sys
import threading
import time

from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task


def work() -> None:
    number = 0
    while True:
        number += 1
        with Session(engine) as session:
            first, second = Task(name=f"task {number}"), Task(name="other")
            session.add_all([first, second])
            session.flush()
            second.name = "renamed"
            session.flush()
            if number % 5 == 4:
                session.rollback()
            else:
                session.commit()
        if number == 1:
            os.write(begun, b".")


engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
engine.dispose()
rng = random.Random(int(sys.argv[1]))
seen, begun = os.pipe()
for kill in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        try:
            threading.Thread(target=work).start()
            work()
        finally:
            os._exit(1)
    if kill % 2:
        select.select([seen], [], [], 10)
    time.sleep(rng.uniform(0.01, 0.06 if kill % 2 else 0.12))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    while select.select([seen], [], [], 0)[0]:
        os.read(seen, 64)
print("program done", flush=True)
