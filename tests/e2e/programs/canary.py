"""Writes the secrets of a file through every way in, with all logs on, and shows none of them itself.

The file is a JSON object of secrets by name. ``open`` is no secret: it must arrive everywhere.
"""

import asyncio
import json
import logging
import os
import sys
from typing import Any

from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from sqlalchemy import (
    JSON,
    Column,
    ForeignKey,
    LargeBinary,
    Table,
    create_engine,
    delete,
    event,
    insert,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import otel_activity
from otel_activity import activity_context, audited, log_user_action, with_activity_logging

with open(sys.argv[1], encoding="utf-8") as file:
    SECRETS: dict[str, str] = json.load(file)

logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s %(message)s")
for ours in ("otel_activity", "opentelemetry"):
    logging.getLogger(ours).setLevel(logging.DEBUG)


class Loud:
    """A value that cannot be encoded, and says itself to everybody who asks."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return self.secret

    __str__ = __repr__


class Base(DeclarativeBase):
    pass


grants = Table(
    "grants",
    Base.metadata,
    Column("holder", ForeignKey("badge.serial"), primary_key=True),
    Column("person_id", ForeignKey("person.id"), primary_key=True),
)


@audited(mask=["iban"], hash=["nickname"], drop=["tax_number"])
class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    password: Mapped[str | None]
    email: Mapped[str | None]
    ssn: Mapped[str | None]
    iban: Mapped[str | None]
    nickname: Mapped[str | None]
    tax_number: Mapped[str | None]
    marked: Mapped[str | None] = mapped_column(info={"activity": {"redact": True}})
    profile: Mapped[Any] = mapped_column(JSON, nullable=True)
    note: Mapped[str | None]
    blob: Mapped[bytes | None] = mapped_column(LargeBinary)


@audited(mask=["serial"])
class Badge(Base):
    __tablename__ = "badge"
    serial: Mapped[str] = mapped_column(primary_key=True)
    people: Mapped[list[Person]] = relationship(secondary=grants)


class Login(Base):
    __tablename__ = "login"
    session_token: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[str] = mapped_column(primary_key=True)


@audited(mask=["no_such_column"])
class Misdeclared(Base):
    __tablename__ = "misdeclared"
    id: Mapped[int] = mapped_column(primary_key=True)
    anything: Mapped[str]


def by_name() -> dict[str, Any]:
    """A row whose columns say what they are."""
    return {
        "name": SECRETS["open"],
        "password": SECRETS["column"],
        "email": SECRETS["hashed by setting"],
        "ssn": SECRETS["dropped by setting"],
        "iban": SECRETS["masked by class"],
        "nickname": SECRETS["hashed by class"],
        "tax_number": SECRETS["dropped by class"],
        "marked": SECRETS["column info"],
        "profile": {
            "apiKey": SECRETS["nested key"],
            "logins": [{"pin": SECRETS["deeper key"]}],
            "email": SECRETS["hashed by setting"],
            "note": SECRETS["jwt"],
        },
    }


def by_content(number: int) -> dict[str, Any]:
    """A row whose columns say nothing."""
    kinds = ("jwt", "github", "aws", "pem", "card", "spaced card", "bearer", "url", "query", "text")
    return {
        "name": SECRETS[kinds[number % len(kinds)]],
        "note": f"see {SECRETS[kinds[(number + 1) % len(kinds)]]} there",
        "blob": SECRETS["pem"].encode(),
        "profile": {"list": [SECRETS[kind] for kind in kinds], SECRETS["github"]: 1},
    }


def rows(engine: Any) -> None:
    """Insert, update, delete, many-to-many, savepoints, rollback and a statement that fails."""
    with Session(engine) as session:
        person = Person(id=5001, **by_name())
        session.add(person)
        session.add_all([Person(id=5010 + number, **by_content(number)) for number in range(10)])
        session.add(Badge(serial=SECRETS["primary key"], people=[person]))
        session.add(Login(session_token=SECRETS["composite key"], place=SECRETS["jwt"]))
        session.add(Misdeclared(id=1, anything=SECRETS["misdeclared"]))
        session.commit()
        person.password = SECRETS["changed column"]
        person.profile = {**person.profile, "token": SECRETS["changed column"]}
        session.commit()
        with session.begin_nested() as savepoint:
            session.add(Person(name="x", password=SECRETS["column"], note=SECRETS["jwt"]))
            session.flush()
            savepoint.rollback()
        session.add(
            Person(id=5001, name="twice", password=SECRETS["column"], note=SECRETS["failed statement"])
        )
        try:
            session.commit()
        except IntegrityError:
            session.rollback()
        badge = session.get_one(Badge, SECRETS["primary key"])
        badge.people.clear()
        session.delete(session.get_one(Person, 5011))
        session.delete(badge)
        session.commit()


def statements(engine: Any) -> None:
    """Bulk and Core statements, and texts with parameters."""
    with Session(engine) as session:
        session.execute(insert(Person), [{"id": 5100 + number, **by_content(number)} for number in range(3)])
        session.bulk_insert_mappings(Person, [{"id": 5200, "name": "x", "password": SECRETS["column"]}])
        session.bulk_save_objects([Person(id=5201, name="y", password=SECRETS["column"])])
        session.execute(
            update(Person).where(Person.password == SECRETS["column"]).values(note=SECRETS["jwt"])
        )
        session.execute(text("UPDATE person SET password = :secret"), {"secret": SECRETS["parameter"]})
        session.execute(text(f"UPDATE person SET note = 'password={SECRETS['literal']}' WHERE id = 5200"))
        session.execute(delete(Person).where(Person.password == SECRETS["parameter"], Person.id == 5201))
        session.commit()
    with engine.begin() as connection:
        connection.execute(insert(grants.metadata.tables["login"]), [{"session_token": "t", "place": "p"}])


def actions(engine: Any) -> None:
    """Details, attributes, ids, reasons and exceptions."""
    details = {"password": SECRETS["details"], "n": [{"cvv": SECRETS["details"]}], "t": SECRETS["text"]}
    with activity_context(actor="ann", reason=f"because {SECRETS['jwt']}", tenant=SECRETS["github"]):
        log_user_action(
            "login",
            entity_type="Badge",
            entity_id=SECRETS["primary key"],
            details={**details, "loud": Loud(SECRETS["repr"]), "open": SECRETS["open"]},
            api_token=SECRETS["attribute"],
            comment=SECRETS["url"],
            loud=Loud(SECRETS["repr"]),
        )
        log_user_action("look", entity_type="Login", entity_id=SECRETS["jwt"], details=SECRETS["query"])
        with_activity_logging("find", entity_id=failing_id)(lambda: None)()
        with Session(engine) as session:
            try:
                with with_activity_logging("fail", session=session, details=details):
                    session.add(Person(name="x", password=SECRETS["column"]))
                    session.flush()
                    raise RuntimeError(f"cannot use {SECRETS['exception']}")
            except RuntimeError:
                session.rollback()


def failing_id(result: Any) -> str:
    """The application's own code in a hook of ours: fails, and quotes what it was given."""
    raise ValueError(f"no id in {SECRETS['computed id']}")


app = FastAPI()
engine = create_engine(os.environ["DATABASE_URL"])


def resolve(scope: Any) -> str | None:
    """The resolver of the settings: fails, and quotes what it was asked about."""
    if b"x-fail" in dict(scope["headers"]):
        raise PermissionError(f"not allowed: {SECRETS['resolver']}")
    return "ann"


@app.post("/people/{name}")
def create(name: str, request: Request) -> dict[str, str]:
    with Session(engine) as session:
        session.add(Person(name="from the web", password=request.headers["authorization"]))
        session.commit()
    return {}


@app.get("/broken")
def broken() -> None:
    raise RuntimeError(f"broken by {SECRETS['exception']}")


def requests() -> None:
    """Headers, query, cookies, path, and handlers that fail."""
    client = TestClient(app, raise_server_exceptions=False)
    headers = {
        "Authorization": f"Bearer {SECRETS['header']}",
        "Cookie": f"session={SECRETS['cookie']}; other={SECRETS['cookie']}",
        "User-Agent": f"agent {SECRETS['jwt']}",
        "X-Request-ID": SECRETS["jwt"],
        "X-Api-Key": SECRETS["header"],
    }
    path = f"/people/{SECRETS['path']}?token={SECRETS['parameter']}"
    client.post(path, headers=headers)
    client.post(path, headers={**headers, "X-Fail": "1"})
    client.get(f"/broken?token={SECRETS['parameter']}", headers=headers)


async def asynchronous() -> None:
    """The same through an async driver."""
    made = create_async_engine(os.environ["DATABASE_URL"])
    async with AsyncSession(made) as session:
        session.add(Person(**by_name()))
        session.add(Person(**by_content(4)))
        await session.commit()
    await made.dispose()


def main() -> None:
    """Everything, one after the other; then the counters."""

    @event.listens_for(engine, "handle_error")
    def _ignored(context: Any) -> None:
        """The application's own errors are its own business."""

    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    rows(engine)
    statements(engine)
    actions(engine)
    requests()
    asyncio.run(asynchronous())
    otel_activity.flush_queue(3)
    print(json.dumps(otel_activity.get_queue_metrics(), default=str), flush=True)
    print("canary done", flush=True)


if __name__ == "__main__":
    sys.modules["canary"] = sys.modules["__main__"]
    main()
