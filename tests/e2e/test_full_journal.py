"""A journal that is really full, with ``OTEL_ACTIVITY_OVERFLOW=fail``: transactions that need two steps."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_activity
from otel_activity.errors import DeliveryRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Server
    from tests.e2e.support import World

pytestmark = pytest.mark.e2e

SMALL = 65_536
PATIENCE = 60.0


class Base(DeclarativeBase):
    pass


class Parcel(Base):
    __tablename__ = "parcel"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Invoice(Base):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Shop:
    """Parcels in one database, invoices in another, and the store of their events."""

    def __init__(self, world: World, other: str) -> None:
        self.world = world
        self.dsns = {"parcel": world.application, "invoice": other}
        self.engines = {name: create_engine(_url(dsn)) for name, dsn in self.dsns.items()}
        for engine in self.engines.values():
            Base.metadata.create_all(engine)

    def one(self, *, twophase: bool) -> Session:
        """A session over the first database."""
        return Session(self.engines["parcel"], twophase=twophase)

    def two(self, *, twophase: bool) -> Session:
        """A session over both."""
        parcel, invoice = self.engines["parcel"], self.engines["invoice"]
        return Session(binds={Parcel: parcel, Invoice: invoice}, twophase=twophase)

    def rows(self) -> list[str]:
        """What was committed in both databases."""
        found: list[str] = []
        for table, dsn in self.dsns.items():
            with psycopg.connect(dsn) as connection:
                query = psycopg.sql.SQL("SELECT label FROM {}").format(psycopg.sql.Identifier(table))
                found += [f"{table} {label}" for (label,) in connection.execute(query)]
        return sorted(found)

    def prepared(self) -> int:
        """Transactions that were prepared and never ended, in either database."""
        with psycopg.connect(self.dsns["parcel"]) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_prepared_xacts WHERE database = ANY(%s)",
                [[psycopg.conninfo.conninfo_to_dict(dsn)["dbname"] for dsn in self.dsns.values()]],
            ).fetchone()
        assert row is not None
        return int(row[0])

    def stored(self) -> list[str]:
        """What the events in the store tell of."""
        with psycopg.connect(self.world.store) as connection:
            found = connection.execute(
                "SELECT lower(entity_type) || ' ' || (changes->'label'->>'after') FROM activity.events"
                " WHERE name = 'activity.entity.created'"
            )
            return sorted(label for (label,) in found)

    def store(self, *, there: bool) -> None:
        """Take the store away, or bring it back."""
        before, after = ("elsewhere", "activity") if there else ("activity", "elsewhere")
        with psycopg.connect(self.world.store, autocommit=True) as connection:
            connection.execute(
                psycopg.sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(
                    psycopg.sql.Identifier(before), psycopg.sql.Identifier(after)
                )
            )

    def fill(self, *sizes: int) -> None:
        """Commit until the journal refuses, with labels of these sizes, one after the other."""
        for size in sizes:
            for number in range(2000):
                try:
                    with self.one(twophase=False) as session:
                        session.add(Parcel(label=f"{size} {number} " + "x" * size))
                        session.commit()
                except DeliveryRefused:
                    break
            else:
                raise AssertionError("the journal never was full")


def _url(dsn: str) -> str:
    return dsn.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def shop(
    world: World, postgres_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """Audited with a small journal, into a store that is away; auditing is off afterwards."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    name = f"invoices_{os.getpid()}"
    made = Shop(world, postgres_server.create_database(name))
    otel_activity.instrument(
        postgres_dsn=world.store,
        journal_dir=str(tmp_path / "journal"),
        journal_max_bytes=SMALL,
        overflow="fail",
        schedule_delay=50,
    )
    made.store(there=False)
    yield made
    otel_activity.shutdown(0.1)
    for engine in made.engines.values():
        engine.dispose()
    postgres_server.drop_database(name)


def refuse_half(shop: Shop, large: str, *, twophase: bool) -> None:
    """A transaction over both databases, of which the journal has no room for one half."""
    with shop.two(twophase=twophase) as session:
        session.add(Parcel(label="x" * (5000 if large == "parcel" else 1)))
        session.add(Invoice(label="x" * (5000 if large == "invoice" else 1)))
        with pytest.raises(DeliveryRefused):
            session.commit()


def back(shop: Shop) -> None:
    """The store is there again, and has everything."""
    shop.store(there=True)
    deadline = time.monotonic() + PATIENCE
    while not otel_activity.flush_queue(5) or otel_activity.get_queue_metrics()["journal"]["units"]:
        assert time.monotonic() < deadline, otel_activity.get_queue_metrics()


@pytest.mark.filterwarnings("ignore:transaction already deassociated")  # SQLAlchemy's, about itself
@pytest.mark.parametrize("twophase", [False, True], ids=["one phase", "two phases"])
@pytest.mark.parametrize("over", ["one", "two"])
def test_a_full_journal_refuses_all_of_a_transaction(shop: Shop, over: str, twophase: bool) -> None:
    """Nothing is committed without its events, nothing stays prepared; with the store back all goes on."""
    make: Callable[..., Session] = getattr(shop, over)
    shop.fill(2000, 1)
    before = shop.rows()
    for number in range(3):
        with make(twophase=twophase) as session:
            session.add(Parcel(label=f"refused {number}"))
            if over == "two":
                session.add(Invoice(label=f"refused {number}"))
            with pytest.raises(DeliveryRefused, match=f"OTEL_ACTIVITY_JOURNAL_MAX_BYTES={SMALL}"):
                session.commit()
        assert shop.rows() == before
        assert shop.prepared() == 0
    back(shop)
    assert shop.stored() == before
    with make(twophase=twophase) as session:
        session.add(Parcel(label="afterwards"))
        if over == "two":
            session.add(Invoice(label="afterwards"))
        session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert shop.rows() == shop.stored()
    assert len(shop.rows()) == len(before) + (2 if over == "two" else 1)
    assert shop.prepared() == 0
    metrics = otel_activity.get_queue_metrics()
    assert (metrics["dropped"], metrics["journal"]["unjournaled"], metrics["undecided"]) == (0, 0, 0)


@pytest.mark.filterwarnings("ignore:transaction already deassociated")  # SQLAlchemy's, about itself
@pytest.mark.parametrize("large", ["parcel", "invoice"])
def test_a_transaction_that_is_refused_half_way_is_rolled_back_in_both(shop: Shop, large: str) -> None:
    """There is room for one half: whichever is prepared first, its PREPARE is taken back."""
    shop.fill(2000)
    before = shop.rows()
    refuse_half(shop, large, twophase=True)
    assert shop.rows() == before
    assert shop.prepared() == 0
    back(shop)
    assert shop.stored() == before
    assert otel_activity.get_queue_metrics()["journal"]["units"] == 0


@pytest.mark.parametrize("large", ["parcel", "invoice"])
def test_two_commits_have_their_events_or_are_none(shop: Shop, large: str) -> None:
    """Without two phases one database may commit and the other be refused, each with what it tells of."""
    shop.fill(2000)
    before = shop.rows()
    refuse_half(shop, large, twophase=False)
    committed = [label for label in shop.rows() if label not in before]
    assert committed in ([], ["parcel x"] if large == "invoice" else ["invoice x"])
    back(shop)
    assert shop.stored() == shop.rows()
    assert otel_activity.get_queue_metrics()["undecided"] == 0
