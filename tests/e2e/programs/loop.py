"""A program that commits until it is killed: two rows in, one changed; each fifth time it rolls back."""

import os
import sys
import time

from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task

engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 30
print("program runs", flush=True)
for number in range(rounds):
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
print("program done", flush=True)
if "exit" in sys.argv:
    os._exit(0)
if "wait" in sys.argv:
    time.sleep(60)
