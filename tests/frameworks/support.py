"""What the tests of web frameworks share: one table, and who is said to have written to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from otel_activity import semconv

if TYPE_CHECKING:
    from otel_activity.testing import Recorder


SPAN = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))


class Base(DeclarativeBase):
    pass


class Task(Base):
    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Account(Base):
    __tablename__ = "account"
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def memory() -> Engine:
    """A database in memory, for all threads of a test."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    return engine


def save(engine: Engine, name: str = "x") -> None:
    """One row, committed."""
    with Session(engine) as session:
        session.add(Task(name=name))
        session.commit()


def said(recorder: Recorder) -> dict[str, Any]:
    """What the one event of a task says about its circumstances; the recorder is empty afterwards."""
    (event,) = recorder.of("Task")
    recorder.clear()
    wanted = ("user.", "activity.actor.", "http.", "client.", "user_agent.", semconv.REQUEST_ID)
    return {name: value for name, value in event.attributes.items() if name.startswith(wanted)}


def actor(recorder: Recorder) -> tuple[Any, Any]:
    """Type and id of the one event's actor."""
    found = said(recorder)
    return found[semconv.ACTOR_TYPE], found.get(semconv.USER_ID)


def authentication(recorder: Recorder) -> list[dict[str, Any]]:
    """The security events, with name, outcome and whom they name; the recorder is empty afterwards."""
    kept = ("user.", "activity.actor.", "activity.entity.", semconv.DETAILS, semconv.ACTIVITY_OUTCOME)
    found = [
        {"name": event.name.removeprefix("activity.auth.")}
        | {name: value for name, value in event.attributes.items() if name.startswith(kept)}
        for event in recorder.events
        if event.name.startswith("activity.auth.")
    ]
    recorder.clear()
    return found
