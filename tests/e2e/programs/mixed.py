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

from orders import Base, order
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import otel_activity


def work(rounds: int = 1 << 30) -> None:
    for number in range(rounds):
        with Session(engine) as session:
            order(session)
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
