"""A program whose daemon threads commit until it is gone."""

import os
import sys
import threading
import time

from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task

engine = create_engine(os.environ["DATABASE_URL"], pool_size=20)
Base.metadata.create_all(engine)


def work():
    while True:
        with Session(engine) as s:
            s.add(Task(name="x"))
            s.commit()


for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(float(sys.argv[1]))
