"""A few requests to an application in this process, one of them slow."""

import os
import time

from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.testclient import TestClient


class Base(DeclarativeBase):
    pass


class Parcel(Base):
    __tablename__ = "parcel"
    id: Mapped[int] = mapped_column(primary_key=True)
    to: Mapped[str]


engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
app = FastAPI()


@app.post("/parcels/{to}")
def send(to: str) -> None:
    if to == "moon":
        time.sleep(0.3)
    with Session(engine) as session:
        session.add(Parcel(to=to))
        session.commit()


client = TestClient(app)
for place in ("paris", "moon", "rome"):
    client.post(f"/parcels/{place}").raise_for_status()
