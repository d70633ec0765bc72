"""An SQLAlchemy program that knows nothing of auditing: 5 rows in, one changed, one deleted."""

import os
import sys
import time

from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task

print("program runs", flush=True)
engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
with Session(engine) as session:
    session.add_all([Task(name=f"task {number}") for number in range(5)])
    session.commit()
    task = session.get_one(Task, 5)
    task.name = "renamed"
    session.commit()
    session.delete(task)
    session.commit()
    session.add(Task(name="never committed"))
    session.flush()
    session.rollback()
print("program done", flush=True)
if "wait" in sys.argv:
    time.sleep(60)
if "multiprocessing" in sys.argv:
    import multiprocessing

    def child() -> None:
        engine.dispose(close=False)
        with Session(engine) as session:
            session.add(Task(name="by a child"))
            session.commit()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
if "fork" in sys.argv:
    pid = os.fork()
    engine.dispose(close=False)
    with Session(engine) as session:
        session.add(Task(name=f"by {'the child' if pid == 0 else 'the parent'}"))
        session.commit()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
