"""Losses in a running program, on a real server: what is stored and what the gap records say add up."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_activity
from otel_activity.store.gaps import Kind, find_gaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.e2e.support import World

pytestmark = pytest.mark.e2e

PATIENCE = 90.0


class Base(DeclarativeBase):
    pass


class Parcel(Base):
    __tablename__ = "parcel"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


@pytest.fixture
def engine(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The application's engine; the environment says nothing, and auditing is off afterwards."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    made = create_engine(world.application.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(made)
    yield made
    otel_activity.shutdown(0.1)
    made.dispose()


def commit(engine: Engine, label: str) -> None:
    """One transaction with one event."""
    with Session(engine) as session:
        session.add(Parcel(label=label))
        session.commit()


def rename(world: World, before: str, after: str) -> None:
    """The store's tables go away, or come back."""
    with psycopg.connect(world.store, autocommit=True) as connection:
        connection.execute(f"ALTER SCHEMA {before} RENAME TO {after}")


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otel_activity.get_queue_metrics()
        time.sleep(0.02)


def gaps(world: World) -> list[tuple[str, int]]:
    """Reason and count of each gap record in the store."""
    with psycopg.connect(world.store) as connection:
        return connection.execute(
            "SELECT attributes ->> 'activity.gap.reason', (attributes ->> 'activity.gap.count')::int "
            "FROM activity.events WHERE name = 'activity.gap'"
        ).fetchall()


def counted(world: World) -> int:
    """How many events the gap records say were lost."""
    return sum(count for _, count in gaps(world))


def created(world: World) -> int:
    """How many events of the application are stored."""
    with psycopg.connect(world.store) as connection:
        row = connection.execute(
            "SELECT count(*) FROM activity.events WHERE name = 'activity.entity.created'"
        ).fetchone()
    return 0 if row is None else row[0]


def lost() -> int:
    """Events that were counted as dropped."""
    return int(otel_activity.get_queue_metrics()["dropped"])


def unexplained(world: World) -> list[tuple[Kind, int | None]]:
    """What nothing accounts for, young as it may be."""
    since = datetime.now(UTC) - timedelta(hours=1)
    every = find_gaps(world.store, "activity", since=since, grace=timedelta(0))
    return [(one.kind, one.count) for one in every if one.explanation is None]


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("queue full", {"delivery": "best_effort"}),
        ("journal full", {"delivery": "durable", "journal_max_bytes": 65_536, "commit_proof": "off"}),
    ],
)
def test_what_an_outage_cost_is_recorded_exactly(
    world: World, engine: Engine, reason: str, settings: dict[str, Any]
) -> None:
    """The store is away for longer than the bounds last: stored events and recorded losses are all events."""
    otel_activity.instrument(
        postgres_dsn=world.store, max_queue_size=8, schedule_delay=50, shutdown_timeout=PATIENCE, **settings
    )
    rename(world, "activity", "elsewhere")
    committed = 1
    commit(engine, "first")
    wait_for(lambda: otel_activity.get_queue_metrics()["exporters"]["postgres"]["trouble"])
    while lost() < 20:
        assert committed < 5000
        commit(engine, f"parcel {committed}")
        committed += 1
    wait_for(lambda: reason == "journal full" or otel_activity.get_queue_metrics()["waiting"] == 0)
    dropped = lost()
    rename(world, "elsewhere", "activity")
    wait_for(lambda: otel_activity.flush_queue(PATIENCE) and counted(world) >= dropped)
    assert counted(world) == dropped
    assert {said for said, _ in gaps(world)} == {reason}
    assert created(world) == committed - dropped
    assert lost() == dropped
    assert unexplained(world) == []


def test_a_process_that_ends_during_an_outage_leaves_a_note(world: World, engine: Engine) -> None:
    """Without a journal what was queued is lost; the next process of the service records how much."""
    settings: dict[str, Any] = {"postgres_dsn": world.store, "delivery": "best_effort", "schedule_delay": 50}
    otel_activity.instrument(**settings)
    rename(world, "activity", "elsewhere")
    for number in range(7):
        commit(engine, f"parcel {number}")
    wait_for(lambda: otel_activity.get_queue_metrics()["exporters"]["postgres"]["trouble"])
    assert not otel_activity.shutdown(0.2)
    rename(world, "elsewhere", "activity")
    assert otel_activity.instrument(**settings)
    wait_for(lambda: otel_activity.flush_queue(PATIENCE) and counted(world) >= 7)
    assert counted(world) == 7
    assert {reason for reason, _ in gaps(world)} == {"process ended"}
    assert unexplained(world) == []
