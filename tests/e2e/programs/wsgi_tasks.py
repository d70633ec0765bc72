"""A WSGI program that knows nothing of auditing: each POST adds a row."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from tasks import Base, Task

engine = create_engine(os.environ["DATABASE_URL"])
with engine.begin() as connection:
    connection.execute(text("SELECT pg_advisory_xact_lock(1)"))  # workers are started at the same time
    Base.metadata.create_all(connection)
engine.dispose()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["REQUEST_METHOD"] == "POST":
        with Session(engine) as session:
            session.add(Task(name="from the web"))
            session.commit()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
