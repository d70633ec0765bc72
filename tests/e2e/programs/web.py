"""A FastAPI program that knows nothing of auditing: each request adds a row."""

import os

from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from tasks import Base, Task

engine = create_engine(os.environ["DATABASE_URL"])
app = FastAPI()


@app.get("/ready")
def ready() -> dict[str, bool]:
    Base.metadata.create_all(engine)
    return {"ready": True}


@app.post("/tasks")
def create() -> dict[str, int]:
    with Session(engine) as session:
        task = Task(name="from the web")
        session.add(task)
        session.commit()
        return {"id": task.id}
