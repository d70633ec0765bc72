"""Capture keeps nothing alive that the application has let go."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

from sqlalchemy import Column, ForeignKey, Table, create_engine, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

if TYPE_CHECKING:
    from typing import Any

    from otel_activity.capture import SQLAlchemyCapture


def make_and_use() -> list[weakref.ref[Any]]:
    """Define models on the fly, as automap does, write through them, and let them go."""

    class Base(DeclarativeBase):
        pass

    class Child(Base):
        __tablename__ = "child"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Parent(Base):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        children = relationship(
            Child,
            secondary=Table(
                "parent_child",
                Base.metadata,
                Column("parent_id", ForeignKey("parent.id"), primary_key=True),
                Column("child_id", ForeignKey("child.id"), primary_key=True),
            ),
        )

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        parent = Parent(name="a", children=[Child()])
        session.add(parent)
        session.commit()
        parent.name = "b"
        session.commit()
    engine.dispose()
    return [
        weakref.ref(thing)
        for thing in (Child, Parent, inspect(Parent), Base.metadata, engine.dialect, parent)
    ]


def test_models_that_are_gone(capture: SQLAlchemyCapture) -> None:
    """A class that was made on the fly is not kept, nor its tables and the plans that were made for it."""
    planner = capture.actions._planner
    gone = make_and_use()
    for _ in range(3):
        gc.collect()
    assert [found() for found in gone] == [None] * len(gone)
    assert (planner.plans, planner._tables, planner._mappers) == ({}, {}, {})
