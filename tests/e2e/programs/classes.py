"""Money that is strict, visits that are best effort, orders that are as the settings say, in one transaction.

Arguments: how often to commit; then ``before`` or ``after``: the program kills itself just before or just
after the COMMIT of that round has reached the server.
"""

import os
import signal
import sys
from typing import Any

import psycopg
from orders import Base, order
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from otel_activity.postgres import outbox

rounds = int(sys.argv[1])
moment = sys.argv[2] if len(sys.argv) > 2 else ""
engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
commits = 0
send = psycopg.Connection.commit
both = outbox._insert_and_commit


def commit(connection: Any) -> None:
    """COMMIT, and perhaps the end of this process."""
    if moment == "before" and commits == rounds:
        os.kill(os.getpid(), signal.SIGKILL)
    send(connection)
    if moment == "after" and commits == rounds:
        os.kill(os.getpid(), signal.SIGKILL)


def insert_and_commit(*arguments: Any) -> None:
    """The events of a strict transaction together with its COMMIT, and perhaps the end before it."""
    if moment == "before" and commits == rounds:
        os.kill(os.getpid(), signal.SIGKILL)
    both(*arguments)


psycopg.Connection.commit = commit  # type: ignore[method-assign]
outbox._insert_and_commit = insert_and_commit
print("program runs", flush=True)
for number in range(1, rounds + 1):
    with Session(engine) as session:
        order(session)
        if number % 5 == 4:
            session.rollback()
        else:
            commits = number
            session.commit()
print("program done", flush=True)
