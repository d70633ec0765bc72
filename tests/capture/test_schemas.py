"""``schema_translate_map``: one model, a table for each tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, Engine, ForeignKey, Table, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from otel_activity import semconv
from otel_activity.capture import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.capture.support import Scene


class Base(DeclarativeBase):
    """Models of all tenants."""


tagged = Table(
    "tagged",
    Base.metadata,
    Column("thing_id", ForeignKey("thing.id"), primary_key=True),
    Column("tag_id", ForeignKey("thing_tag.id"), primary_key=True),
)


class Tag(Base):
    __tablename__ = "thing_tag"
    id: Mapped[int] = mapped_column(primary_key=True)


class Thing(Base):
    """Has a second UPDATE, and rows of a secondary table."""

    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    next_id: Mapped[int | None] = mapped_column(ForeignKey("thing.id"))
    next: Mapped[Thing | None] = relationship(remote_side=[id], post_update=True)
    tags: Mapped[list[Tag]] = relationship(secondary=tagged)


@pytest.fixture
def engine(scene: Scene) -> Iterator[Engine]:
    """An engine on a database with two tenants."""
    engine = scene.engine()
    for schema in ("one", "two"):
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        Base.metadata.create_all(of(engine, schema))
    yield engine
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA one CASCADE; DROP SCHEMA two CASCADE"))


def of(engine: Engine, schema: str) -> Engine:
    """The engine of one tenant."""
    return engine.execution_options(schema_translate_map={None: schema})


def everything(session: Session) -> None:
    """Write rows in each way that rows are written."""
    thing = Thing(name="a", tags=[Tag()])
    thing.next = thing
    session.add(thing)
    session.commit()
    thing.name = "b"
    session.commit()
    session.delete(thing)
    session.commit()


def namespaces(scene: Scene) -> list[Any]:
    """Which schema each event names."""
    return [event.attributes[semconv.DB_NAMESPACE].partition("|")[2] for event in scene.recorder.events]


def test_events_name_the_schema_of_the_tenant(scene: Scene, engine: Engine) -> None:
    """Each event says which table it is about, whichever way its row was written."""
    for schema in ("one", "two"):
        with Session(of(engine, schema)) as session:
            everything(session)
        assert namespaces(scene) == [schema] * 8
        scene.recorder.events.clear()


def test_map_of_one_transaction(scene: Scene, engine: Engine) -> None:
    """The map may be given with a connection, also anew in the midst of a transaction."""
    with Session(engine) as session:
        connection = session.connection(execution_options={"schema_translate_map": {None: "one"}})
        session.add(Thing(name="a"))
        session.flush()
        connection.execution_options(schema_translate_map={None: "two"})
        session.add_all([Thing(name="b"), Thing(name="c")])
        session.commit()
    assert namespaces(scene) == ["one", "two", "two"]


def test_many_tenants_fill_no_memory(scene: Scene, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered for each schema is bounded."""
    monkeypatch.setattr(plan, "_KNOWN_SCHEMAS", 1)
    for schema in ("one", "two", "one"):
        with Session(of(engine, schema)) as session:
            session.add(Thing(name="a"))
            session.commit()
    assert namespaces(scene) == ["one", "two", "one"]
